"""One task's adapter back from a merge with masks."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.arguments import checked
from loramerge.adapters.target import Target
from loramerge.algorithms.entries.restoration import Restored
from loramerge.arrays.workers import workers
from loramerge.errors import IncompatibleError, UsageError, printable, say
from loramerge.formats import load
from loramerge.formats.bundles import refuse_bundle
from loramerge.formats.masks import PLACE, Masks, mark_of, open_masks
from loramerge.formats.remote import both_readings
from loramerge.hub.fetch import fetch
from loramerge.hub.names import hub_name
from loramerge.merge.plan import Plan
from loramerge.merge.planner import planned
from loramerge.merge.prove import fingerprint
from loramerge.merge.run import Merge, run
from loramerge.request.effort import Effort
from loramerge.request.entry import part
from loramerge.request.recipe import Ingredient, Recipe
from loramerge.request.request import Request
from loramerge.request.signature import spelled
from loramerge.routing.router import PLACE as ROUTER_PLACE
from loramerge.routing.router import Inputs, load_router, read_inputs


@spelled("restore")
@checked("merged", "task", "out", "rank", "energy")
def restore(
    merged: str | Path,
    task: str | None = None,
    out: str | Path | None = None,
    *,
    inputs: Inputs | None = None,
    rank: int | None = None,
    energy: float | None = None,
    **asked: Any,
) -> Merge:
    """Bring one task back from a merge by ``mergevla``: S ∘ ΔW, fitted to a rank.

    Args:
        merged: the folder of the merge with its masks, on this machine or on the Hub.
        task: the name of one of its sources.
        inputs: instead of a task, what goes into some modules: {module: (…, in)}, or a .npz of that. The
            router of the merge tells which task it is of.
        out: as for `combine`.
        rank, energy: of the result; by default the rank that the task's adapter had.
        {asked}

    Returns:
        Merge: its report says what the rank cut off.

    Raises:
        SourceError: there are no masks.   UsageError: there is no such task.
        IncompatibleError: the masks belong to another merge.

    >>> import tempfile
    >>> import loramerge as lm
    >>> pair = ["fixtures/a.safetensors", "fixtures/b.safetensors"]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     merge = lm.combine(pair, "mergevla", out=f"{folder}/merged")
    ...     a = restore(f"{folder}/merged", "a.safetensors", rank=64).adapter
    ...     round(lm.diff(a, lm.load("fixtures/a.safetensors")).error, 1)  # of what the mask leaves out
    0.2
    """
    return run(restored(merged, (task, inputs), {"rank": rank, "energy": energy, "out": out, **asked}))


def restored(merged: str | Path, wanted: tuple[str | None, Inputs | None], asked: dict[str, Any]) -> Plan:
    """What `restore` would do. Reads the merge, to see that its masks are for it.

    Args:
        wanted: the task, or inputs that tell which it is.
    """
    sizes = {name: asked.pop(name, None) for name in ("rank", "energy")}
    fields, _ = part("restore", None, asked)
    request = Request(**fields)
    folder, source, shown = _brought(merged)
    refuse_bundle(folder, shown)
    if folder.suffix == ".safetensors" and not os.path.isdir(folder):
        raise UsageError(
            f"{printable(shown)} is one file, but masks lie in a folder: name the folder of the merge."
        )
    masks, adapter = open_masks(folder, _task(folder, wanted, shown), shown), load(source)
    _check_meant_for(masks, adapter, request.effort)
    own = {target: slot for target, slot in adapter.slots.items() if str(target) in masks.tensors}
    adapter = replace(adapter, slots=own)
    if sizes == {"rank": None, "energy": None}:
        sizes["rank"] = masks.rank
    method = Restored(masks_of=masks, **sizes)
    return planned(Recipe((Ingredient(adapter),), method, request=request))


def _task(folder: Path, wanted: tuple[str | None, Inputs | None], shown: str) -> str:
    """The task that is named, or to which the router takes the inputs.

    Raises:
        UsageError: both are given, or neither.
    """
    task, inputs = wanted
    if (task is None) == (inputs is None):
        raise UsageError(f"Give {say('task')} or {say('inputs')}: one of them says what to bring back.")
    if inputs is None:
        return str(task)
    return load_router(folder, shown).choose(read_inputs(inputs))


def _brought(merged: str | Path) -> tuple[Path, str | Path, str]:
    """Where the merge lies on this disk, with its masks; the source that it is; its name for messages."""
    name = hub_name(merged)
    if name is None:
        return Path(merged), merged, str(merged)
    with both_readings(str(merged)):
        found = fetch(name, also=[PLACE, ROUTER_PLACE])
    return found.path, str(replace(found.name, revision=found.commit)), found.name.shown


def _check_meant_for(masks: Masks, adapter: Adapter, effort: Effort) -> None:
    """Raises IncompatibleError: the adapter is not the one that the masks were made for."""

    def look(target: Target) -> tuple[Target, str]:
        update = adapter[target]
        return target, fingerprint(update.up, update.down)

    with workers(effort.workers) as each:
        marks = dict(each(look, adapter))
    if mark_of(marks) != masks.mark:
        raise IncompatibleError(
            f"The masks of {printable(adapter.name)} were made for another merge, or the adapter was changed "
            "since: merge again."
        )
