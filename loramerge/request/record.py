"""How a merge was made, as plain values: sources, weights, method, versions."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from loramerge import __version__
from loramerge.adapters.adapter import Adapter
from loramerge.adapters.base_models import without_folders
from loramerge.algorithms import Method, name_of, options_of, packages_of
from loramerge.arrays import dtypes
from loramerge.formats.output import Outline
from loramerge.request.scale import Scale
from loramerge.request.schedule import Schedule, Weight, plain

SCHEMA = 1


Digests = Sequence[Mapping[str, str]]


class Opened(Protocol):
    """The sources of a merge, as far as they are recorded."""

    @property
    def whole(self) -> tuple[Adapter, ...]: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def left_out(self) -> Mapping[str, float]: ...


class Tailored(Protocol):
    """The consumer that a merge is for, as far as it is recorded."""

    def settings(self) -> dict[str, Any]: ...


class Planned(Protocol):
    """A merge that is settled, as far as it is recorded."""

    @property
    def sources(self) -> Opened: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def method(self) -> Method: ...
    @property
    def outline(self) -> Outline: ...
    @property
    def tailor(self) -> Tailored | None: ...
    @property
    def scale(self) -> Scale: ...


def record(plan: Planned, digests: Digests) -> dict[str, Any]:
    """The recipe of a merge; holds no path and no time.

    Args:
        digests: (T,) file name -> SHA-256 of each source.
    """
    given = plan.method.traits.given
    sources = zip(plan.sources.whole, plan.schedule.weights, digests, strict=True)
    rules = [rule.to_plain() for rule in plan.schedule.rules]
    dtype = dtypes.word(plan.outline.dtype)
    return {
        "schema": SCHEMA,
        "sources": [_source(given, *each) for each in sources],
        "method": {"name": name_of(plan.method), "options": options_of(plan.method)},
        "settings": {
            **plan.sources.settings,
            "dtype": dtype,
            "profile": plan.outline.profile,
            "modules": rules,
            **({"ranks": dict(plan.schedule.ranks)} if plan.schedule.ranks else {}),
            **({"left_out": dict(plan.sources.left_out)} if plan.sources.left_out else {}),
            **(plan.tailor.settings() if plan.tailor else {}),
            **({"scale": plan.scale} if plan.scale != 1.0 else {}),
        },
        "versions": versions(plan.method),
    }


def _source(given: str, adapter: Adapter, weight: Weight, digest: Mapping[str, str]) -> dict[str, Any]:
    alpha = adapter.provenance.alpha
    return {
        "name": adapter.provenance.name,
        "revision": adapter.provenance.revision,
        "sha256": dict(digest),
        "alpha": float(alpha) if isinstance(alpha, int) else alpha,
        "scales": scales_digest(adapter),
        "base_model": without_folders(adapter.base.name),
        given: plain(weight),
        **({"hub": adapter.provenance.hub} if adapter.provenance.hub else {}),
        **({"licence": adapter.provenance.licence} if adapter.provenance.licence else {}),
    }


def scales_digest(adapter: Adapter) -> str:
    """A fingerprint of every module's scale, which may come from a file without a SHA-256 in the record."""
    said = "\n".join(f"{target} {adapter.slots[target].scale!r}" for target in sorted(adapter))
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


def versions(method: Method) -> dict[str, str]:
    """What the last digits depend on."""
    return {
        **packages_of(method),
        "loramerge": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
    }


def unhashed(adapters: Sequence[Adapter]) -> list[dict[str, str]]:
    """Digests of the right length, for a header that is written before the sources are hashed."""
    return [dict.fromkeys((path.name for path in a.provenance.files), "0" * 64) for a in adapters]


@contextmanager
def hashing(adapters: Sequence[Adapter]) -> Iterator[Callable[[], list[dict[str, str]]]]:
    """Hash the sources in a thread of its own while they are merged; the call waits for the digests.

    It reads the files in order, ahead of the merge or just behind it, so that the disk is read once.
    """
    with ThreadPoolExecutor(1) as pool:
        jobs = [pool.submit(adapter.provenance.sha256) for adapter in adapters]
        try:
            yield lambda: [job.result() for job in jobs]
        finally:
            for job in jobs:
                job.cancel()
