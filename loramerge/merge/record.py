"""How a merge was made, from its plan: sources, weights, method, versions."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loramerge import __version__
from loramerge.adapters.adapter import Adapter
from loramerge.adapters.base_models import without_folders
from loramerge.algorithms import Method, name_of, options_of, packages_of
from loramerge.arrays.workers import crew
from loramerge.hub.names import hub_name
from loramerge.merge.plan import Plan
from loramerge.request.default import DEFAULT
from loramerge.request.progress import Stage, Tell
from loramerge.request.record import Record, SourceRecord, Start
from loramerge.request.request import Request
from loramerge.request.rules import Weight

Digests = Sequence[Mapping[str, str]]


def record(plan: Plan, digests: Digests) -> dict[str, Any]:
    """The record of a merge as plain values.

    Args:
        digests: (T,) file name -> SHA-256 of each source.
    """
    given = plan.method.traits.given
    sources = zip(plan.sources.whole, plan.schedule.weights, digests, strict=True)
    return Record(
        tuple(_source(given, *each) for each in sources),
        name_of(plan.method),
        options_of(plan.method),
        _settled(plan),
        plan.schedule.ranks,
        plan.sources.left_out,
        versions(plan.method),
        # of what has always been the sum, records keep the bytes that they had
        plan.default is not None and plan.default.name == DEFAULT,
    ).to_dict()


def _settled(plan: Plan) -> Request:
    """The request without folders of this machine."""
    settled, base = plan.settled, plan.settled.heads_as_lora
    if base is None or hub_name(base) is not None:
        return settled
    return replace(settled, heads_as_lora=Path(base).name or str(base))


def _source(given: str, adapter: Adapter, weight: Weight, digest: Mapping[str, str]) -> SourceRecord:
    came = adapter.provenance
    return SourceRecord(
        came.name,
        came.revision,
        digest,
        weight,
        came.alpha,
        scales_digest(adapter),
        came.hub,
        given,
        without_folders(adapter.base.name),
        came.licence,
        None if came.initial is None else Start(came.initial, tuple(digest)[-came.starting :]),
        came.apart,
    )


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
    return [dict.fromkeys(a.provenance.names, "0" * 64) for a in adapters]


@contextmanager
def hashing(
    adapters: Sequence[Adapter], tell: Tell | None = None
) -> Iterator[Callable[[], list[dict[str, str]]]]:
    """Hash the sources in a thread of its own while they are merged; the call waits for the digests.

    It reads the files in order, ahead of the merge or just behind it, so that the disk is read once.
    """
    with crew(1) as thread:
        jobs = [thread.submit(_hashed, adapter) for adapter in adapters]

        def digests() -> list[dict[str, str]]:
            with Stage(tell, "hashing", len(adapters)) as stage:
                return list(stage.over(job.result(stage.tick) for job in jobs))

        yield digests


def _hashed(adapter: Adapter) -> dict[str, str]:
    return adapter.provenance.sha256()
