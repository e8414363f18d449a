"""Merge LoRA adapters into one adapter: exact, without the base model, proved by reading back.

    merge = loramerge.combine(["a", "b"], method="lego", rank=16, out="merged")
    print(merge.report)

Names are loaded when first used, so that `loramerge --help` needs no NumPy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from loramerge.adapter import (
        Adapter as Adapter,
    )
    from loramerge.adapter import (
        BaseModel as BaseModel,
    )
    from loramerge.adapter import (
        Provenance as Provenance,
    )
    from loramerge.algorithms import (
        METHODS as METHODS,
    )
    from loramerge.algorithms import (
        Average as Average,
    )
    from loramerge.algorithms import (
        Cat as Cat,
    )
    from loramerge.algorithms import (
        Lego as Lego,
    )
    from loramerge.algorithms import (
        Linear as Linear,
    )
    from loramerge.algorithms import (
        Method as Method,
    )
    from loramerge.algorithms import (
        Svd as Svd,
    )

_HOMES = {
    "adapter": ("Adapter", "BaseModel", "Provenance"),
    "algorithms": ("METHODS", "Average", "Cat", "Lego", "Linear", "Method", "Svd"),
    "driver": ("Merge", "combine"),
    "errors": (
        "IncompatibleError",
        "LoramergeError",
        "OutputError",
        "SourceError",
        "UsageError",
        "VerificationError",
    ),
    "formats": ("load", "save"),
    "formats.state": ("from_state_dict", "to_state_dict"),
    "inspection": ("inspect",),
    "lowrank": ("LowRank",),
    "planning": ("plan",),
    "report": ("Report",),
    "target": ("Target",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'loramerge' has no attribute {name!r}")
    value = getattr(import_module(f"loramerge.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
