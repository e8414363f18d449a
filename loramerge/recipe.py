"""How a merge was made, as plain values: sources, weights, method, settings, versions."""

from __future__ import annotations

import hashlib
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from loramerge.adapter import Adapter
from loramerge.algorithms import Method, name_of
from loramerge.schedule import Weight, plain

SCHEMA = 1
ABSOLUTE = re.compile(r"/|~|[A-Za-z]:[\\/]")  # also a Windows path, whatever this machine is


def record(
    adapters: Sequence[Adapter], weights: Sequence[Weight], method: Method, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The recipe of a merge. Reads the sources for their SHA-256; holds no path and no time.

    Args:
        weights: (T,) as they were given.   method: settled.   settings: what else shaped the merge.
    """
    return {
        "schema": SCHEMA,
        "sources": [_source(a, weight) for a, weight in zip(adapters, weights, strict=True)],
        "method": {"name": name_of(method), "options": method.options()},
        "settings": dict(settings),
        "versions": versions(),
    }


def _source(adapter: Adapter, weight: Weight) -> dict[str, Any]:
    alpha = adapter.provenance.alpha
    return {
        "name": adapter.provenance.name,
        "revision": adapter.provenance.revision,
        "sha256": adapter.provenance.sha256(),
        "alpha": float(alpha) if isinstance(alpha, int) else alpha,
        "scales": scales_digest(adapter),
        "base_model": _without_folders(adapter.base.name),
        "weight": plain(weight),
    }


def scales_digest(adapter: Adapter) -> str:
    """A fingerprint of every module's scale, which may come from a file without a SHA-256 in the record."""
    said = "\n".join(f"{target} {adapter.slots[target].scale!r}" for target in sorted(adapter))
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


def versions() -> dict[str, str]:
    """What the last digits depend on."""
    return {
        "loramerge": version("loramerge"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
    }


def _without_folders(name: str | None) -> str | None:
    """A base model named by an absolute path keeps its last part: the folders are nobody's business."""
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1] if name and ABSOLUTE.match(name) else name
