"""How a merge was made, as plain values: sources, weights, method, versions."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from loramerge.adapter import Adapter
from loramerge.algorithms import Method, name_of
from loramerge.backend import Array

SCHEMA = 1
ABSOLUTE = re.compile(r"/|~|[A-Za-z]:[\\/]")  # also a Windows path, whatever this machine is


def record(
    adapters: Sequence[Adapter], weights: Array, method: Method, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The recipe of a merge. Reads the sources for their SHA-256; holds no path and no time.

    Args:
        weights: (T,) as they were given.   method: settled.   settings: what else shaped the merge.
    """
    sources = [
        {
            "name": adapter.provenance.name,
            "revision": adapter.provenance.revision,
            "sha256": adapter.provenance.sha256(),
            "base_model": _without_folders(adapter.base.name),
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


def _without_folders(name: str | None) -> str | None:
    """A base model named by an absolute path keeps its last part: the folders are nobody's business."""
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1] if name and ABSOLUTE.match(name) else name
