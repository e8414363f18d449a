"""Merge LoRA adapters into one adapter: exact, without the base model, proved by reading back.

    merge = loramerge.combine(["a", "b"], method="lego", rank=16, out="merged")
    print(merge.report)

Names are loaded when first used, so that `loramerge --help` needs no NumPy; `__init__.pyi` is the same
table for type checkers.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec

TYPE_CHECKING = False  # not from `typing`, whose import is long enough to be interrupted
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

__version__ = "0.1.0"

_CONTENTS = {
    "adapters.adapter": "Adapter BaseModel Provenance",
    "adapters.lowrank": "LowRank",
    "adapters.target": "Target",
    "algorithms": "METHODS Method only",
    "algorithms.average": "Average",
    "algorithms.breadcrumbs": "Breadcrumbs",
    "algorithms.cat": "Cat",
    "algorithms.core": "Core",
    "algorithms.ctm": "Ctm",
    "algorithms.dare": "Dare",
    "algorithms.dare_ties": "DareTies",
    "algorithms.dc_merge": "DcMerge",
    "algorithms.della": "Della",
    "algorithms.emr": "Emr",
    "algorithms.fair": "Fair",
    "algorithms.fedavg": "FedAvg",
    "algorithms.ffa": "Ffa",
    "algorithms.iso_c": "IsoC",
    "algorithms.iso_cts": "IsoCTS",
    "algorithms.karcher": "Karcher",
    "algorithms.knots": "Knots",
    "algorithms.lego": "Lego",
    "algorithms.level": "Level",
    "algorithms.linear": "Linear",
    "algorithms.magnitude": "Magnitude",
    "algorithms.mergevla": "MergeVla",
    "algorithms.model_stock": "ModelStock",
    "algorithms.pico": "Pico",
    "algorithms.sce": "Sce",
    "algorithms.sg": "Sg",
    "algorithms.shrunk_tsv": "ShrunkTsv",
    "algorithms.slerp": "Slerp",
    "algorithms.svd": "Svd",
    "algorithms.ties": "Ties",
    "algorithms.tsv": "Tsv",
    "algorithms.wudi": "Wudi",
    "checkpoints.tuned": "Tuned",
    "consumers.finding": "Finding",
    "errors": "IncompatibleError LoramergeError OutputError SourceError UsageError VerificationError",
    "formats": "save",
    "formats.state_dict": "from_state_dict to_state_dict",
    "merge.plan": "Plan",
    "merge.report": "Report",
    "merge.run": "Merge",
    "merge.session": "Opened Session",
    "pages.page": "Page",
    "pages.report": "report",
    "request.effort": "Effort",
    "request.request": "Request",
    "request.rules": "Ramp Rule",
    "routing.bundle": "Bundle",
    "routing.folder": "save_bundle",
    "routing.gates.names": "GATES",
    "routing.reader": "load_bundle",
    "routing.router": "load_router",
    "sources.load": "load",
    "verbs.check": "check",
    "verbs.combine": "combine",
    "verbs.convert": "Conversion convert",
    "verbs.deltas": "write_deltas",
    "verbs.diff": "Difference diff",
    "verbs.extract": "extract",
    "verbs.extraction": "Extraction",
    "verbs.fuse": "Fusion fuse",
    "verbs.inspect": "Inspection inspect",
    "verbs.open": "open",
    "verbs.plan": "plan",
    "verbs.plot": "plot_spectra",
    "verbs.push": "push",
    "verbs.replay": "replay",
    "verbs.resize": "resize",
    "verbs.restore": "restore",
    "verbs.route": "route",
}
_HOME = {name: home for home, names in _CONTENTS.items() for name in names.split()}
__all__ = sorted(_HOME.keys() - {"open"})  # a star import must not hide the built-in

_FORMER = {  # where modules are now that packages with methods of their own may import by their former names
    **{name: f"arrays.{name}" for name in "backend basis dtypes frames gram polar rounding".split()},
    **{name: f"adapters.{name}" for name in "adapter lowrank target".split()},
    **{
        f"algorithms.{name}": f"algorithms.families.{name}"
        for name in "kmeans mixture refit shares span".split()
    },
    "algorithms.federated": "algorithms.families.federation",
    "algorithms.sized": "algorithms.families.size",
    "algorithms.wrapping": "algorithms.only",
    "results": "arrays.remix",
}


class _Former:
    """Finds a module under its former name: the very module, not a copy, so that classes stay the same."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        here = _FORMER.get(name.removeprefix("loramerge."))
        return ModuleSpec(name, _Former()) if here and name.startswith("loramerge.") else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self.module = import_module(f"loramerge.{_FORMER[spec.name.removeprefix('loramerge.')]}")
        self.spec = self.module.__spec__
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import system had put that of the former name there


sys.meta_path.append(_Former)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'loramerge' has no attribute {name!r}")
    value = getattr(import_module(f"loramerge.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_HOME)
