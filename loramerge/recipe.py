"""How a merge was made, as plain values: sources, weights, method, versions."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from loramerge.adapter import Adapter
from loramerge.algorithms import Method, name_of
from loramerge.backend import Array

SCHEMA = 1


def record(
    adapters: Sequence[Adapter], weights: Array, method: Method, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The recipe of a merge. Reads the sources for their SHA-256; holds no path and no time.

    Args:
        weights: (T,) as the method used them.   method: settled.   settings: what else shaped the merge.
    """
    sources = [
        {
            "name": adapter.provenance.name,
            "revision": adapter.provenance.revision,
            "sha256": adapter.provenance.sha256(),
            "base_model": adapter.base.name,
            "weight": float(weight),
        }
        for adapter, weight in zip(adapters, weights, strict=True)
    ]
    return {
        "schema": SCHEMA,
        "sources": sources,
        "method": {"name": name_of(method), "options": method.options()},
        "settings": dict(settings),
        "versions": {
            "loramerge": version("loramerge"),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
