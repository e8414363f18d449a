"""What loramerge.json of a bundle says: its kind, its gates, and where every expert came from."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from loramerge import __version__
from loramerge.adapters.adapter import Adapter
from loramerge.adapters.base_models import without_folders
from loramerge.arrays import dtypes
from loramerge.formats.bundles import KIND
from loramerge.routing.bundle import Bundle
from loramerge.routing.gates.gate import Gate
from loramerge.routing.gates.names import name_of

SCHEMA = 1


def recorded(bundle: Bundle, **more: Any) -> Bundle:
    """The bundle with a record of how it is now; what a former record says of its making stays.

    Args:
        more: `experts`: of each adapter what `described` says; others by name, None for what is not so.
    """
    kept = {"experts": [{"name": name} for name in bundle.experts], "versions": versions(), **bundle.record}
    said = {
        **kept,
        "schema": SCHEMA,
        "kind": KIND,
        "gate": plain(bundle.gate),
        "gates": {str(target): plain(gate) for target, gate in bundle.gates.items()},
        "dtype": dtypes.word(bundle.dtype),
        "modules": len(bundle),
        **more,
    }
    return replace(bundle, record={name: value for name, value in said.items() if value is not None})


def plain(gate: Gate) -> dict[str, Any]:
    """A gate as JSON holds it."""
    return {"name": name_of(gate), "options": {name: _plain(v) for name, v in gate.options().items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    return list(value) if isinstance(value, tuple) else value


def described(adapter: Adapter, sha256: Mapping[str, str], scales: str) -> dict[str, Any]:
    """One adapter as it was; `scales` is a digest of those of its modules."""
    came = adapter.provenance
    return {
        "name": adapter.name,
        "rank": adapter.rank,
        "modules": len(adapter),
        "revision": came.revision,
        "sha256": dict(sha256),
        "alpha": float(came.alpha) if isinstance(came.alpha, int) else came.alpha,
        "scales": scales,
        "base_model": without_folders(adapter.base.name),
        **({"hub": came.hub} if came.hub else {}),
        **({"licence": came.licence} if came.licence else {}),
    }


def versions() -> dict[str, str]:
    """What the last digits depend on."""
    return {
        "loramerge": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
    }
