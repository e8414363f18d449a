"""Merge LoRA adapters into one adapter: exact, without the base model, proved by reading back.

    merge = loramerge.combine(["a", "b"], method="lego", rank=16, out="merged")
    print(merge.report)

Names are loaded when first used, so that `loramerge --help` needs no NumPy; `__init__.pyi` is the same
table for type checkers.
"""

from __future__ import annotations

from importlib import import_module
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
    "algorithms.linear": "Linear",
    "algorithms.magnitude": "Magnitude",
    "algorithms.mergevla": "MergeVla",
    "algorithms.model_stock": "ModelStock",
    "algorithms.pico": "Pico",
    "algorithms.sce": "Sce",
    "algorithms.sg": "Sg",
    "algorithms.slerp": "Slerp",
    "algorithms.svd": "Svd",
    "algorithms.ties": "Ties",
    "algorithms.tsv": "Tsv",
    "algorithms.wudi": "Wudi",
    "checkpoints.extracted": "Tuned",
    "consumers": "Finding",
    "consumers.check": "check",
    "errors": "IncompatibleError LoramergeError OutputError SourceError UsageError VerificationError",
    "formats": "load save",
    "formats.state_dict": "from_state_dict to_state_dict",
    "merge.plan": "Plan",
    "merge.report": "Report",
    "merge.run": "Merge",
    "merge.session": "Opened Session",
    "request.effort": "Effort",
    "request.request": "Request",
    "request.rules": "Ramp Rule",
    "verbs.combine": "combine",
    "verbs.convert": "Conversion convert",
    "verbs.deltas": "write_deltas",
    "verbs.diff": "Difference diff",
    "verbs.extract": "Extraction extract",
    "verbs.fuse": "Fusion fuse",
    "verbs.inspect": "Inspection inspect",
    "verbs.open": "open",
    "verbs.plan": "plan",
    "verbs.plot": "plot_spectra",
    "verbs.push": "push",
    "verbs.replay": "replay",
    "verbs.resize": "resize",
    "verbs.restore": "restore",
}
_HOME = {name: home for home, names in _CONTENTS.items() for name in names.split()}
__all__ = sorted(_HOME.keys() - {"open"})  # a star import must not hide the built-in


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'loramerge' has no attribute {name!r}")
    value = getattr(import_module(f"loramerge.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_HOME)
