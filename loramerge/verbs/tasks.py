"""The tasks of a merge with masks as a bundle: each brought back to a rank, under the router of the merge."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.adapters.target import Target
from loramerge.arrays import dtypes
from loramerge.arrays.dtypes import wide
from loramerge.formats import load
from loramerge.formats.files.atomic import put_back
from loramerge.formats.peft import portable
from loramerge.merge.record import hashing, scales_digest
from loramerge.request.request import Request
from loramerge.routing.bank import Bank
from loramerge.routing.bundle import Bundle
from loramerge.routing.experts import Experts
from loramerge.routing.record import described, recorded
from loramerge.routing.router import PLACE, Router, load_router
from loramerge.verbs.restore import restore


def has_tasks(source: object) -> bool:
    """Whether a folder is a merge with masks and a router."""
    if not isinstance(source, str | Path):
        return False
    put_back(Path(source))
    return os.path.isfile(Path(source) / PLACE)


def bundle_of_tasks(place: Path, request: Request) -> Bundle:
    """Its tasks under the gate of its router: S ∘ ΔW of each, at the rank that the task's adapter had.

    In the modules that the router looks at, the directions are those of the router; in others those of what
    was brought back.
    """
    router, merged = load_router(place), load(place)
    effort: dict[str, Any] = {
        "threads": request.threads,
        "memory": request.memory,
        "progress": request.progress,
    }
    found = {task: restore(place, task, **effort) for task in router.tasks}
    adapters = [replace(merge.adapter, name=task) for task, merge in found.items()]
    lost = [share for merge in found.values() if (share := merge.report.energy_lost) is not None]
    kind = dtypes.widest(a.dtype for a in adapters) if request.dtype is None else dtypes.parse(request.dtype)
    notes = [
        f"what a mask leaves has no small rank: up to {100 * most:.3g} % of the energy of a task is cut off"
        for most in sorted(lost)[-1:]
    ]
    experts = Experts(adapters, dtype=kind, notes=tuple(notes))
    settings = portable.config([merged], experts.layouts(), 1)
    made = experts.bundle(router.gate, merged.base, settings)
    with hashing([merged], request.tell) as digests:
        row = described(merged, next(iter(digests())), scales_digest(merged))
    bundle = replace(made, read=lambda target: _routed(made.read(target), router, target))
    return recorded(bundle, experts=[{"name": name} for name in bundle.experts], restored=[row])


def _routed(bank: Bank, router: Router, target: Target) -> Bank:
    """With the directions of the router, where it has some of this module."""
    if str(target) not in router.directions:
        return bank
    directions = wide(router.directions[str(target)].read()).astype(np.float32)
    return replace(bank, tensors={**bank.tensors, "directions": directions})
