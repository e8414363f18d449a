"""Reading a bundle: a stranger's folder, held against what its record says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.adapters.adapter import Adapter, Slot, Tensor
from loramerge.adapters.arguments import checked
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.arrays.dtypes import wide, widest
from loramerge.errors import SourceError, UsageError, printable
from loramerge.formats.bundles import KIND, Files, record_of, task
from loramerge.formats.files.atomic import put_back
from loramerge.formats.files.destination import RECORD, ROUTER
from loramerge.formats.files.safetensors import open_file
from loramerge.formats.masks import FOLDER
from loramerge.formats.reader import load_path
from loramerge.formats.records import read_record
from loramerge.hub.client import ask
from loramerge.hub.fetch import download
from loramerge.hub.names import HubName, hub_name
from loramerge.routing.bank import Bank, Layout
from loramerge.routing.bundle import Bundle
from loramerge.routing.gates.gate import Gate
from loramerge.routing.gates.names import make

STARTS = "rank_starts"
MASKED = f"{FOLDER}/{ROUTER}"  # of a merge with masks
EXTRAS, SHARED = "extras.", "shared."  # before the names of what goes along, and of what all modules share
Tensors = Mapping[str, Tensor]


@checked("path", "name")
def load_bundle(path: str | Path, name: str | None = None) -> Bundle:
    """Read a bundle that `route` wrote. Only headers are read; units when they are asked for.

    Args:
        path: its folder, or a name on the Hub, from where it is downloaded.   name: what messages call it.

    Raises:
        SourceError: it is none, or its files do not belong together.
    """
    shown = printable(path if name is None else name)
    place = Path(path) if (found := hub_name(path)) is None else _fetched(found)
    put_back(place)
    record = record_of(place)
    if record is None:
        if os.path.isfile(place / MASKED):
            raise SourceError(
                f"{shown} is a merge with masks, and no bundle: `lm.load_router` reads its router, and "
                f"`loramerge route {shown} -o bundle` makes a bundle of its tasks."
            )
        said = read_record(place, shown)
        raise SourceError(
            f"{shown} is no bundle: its {RECORD} is of kind {printable(said.get('kind', 'merge'))}, not "
            f"{KIND}."
        )
    gate, gates, names = _said(record, shown)
    tasks = [load_path(place / task(e), f"{shown}/{task(e)}") for e in range(len(names))]
    router = open_file(place / ROUTER, f"{shown}/{ROUTER}").tensors
    targets = {str(target): target for target in tasks[0]}
    for each in tasks[1:]:
        if set(each) != set(tasks[0]):
            raise SourceError(f"{shown} has experts with other modules than its first: it was changed since.")
    parts = _parts(router, targets, shown)
    layouts = {t: _layout(tasks, t, parts[t], shown) for t in tasks[0]}
    if foreign := sorted(gates.keys() - targets.keys()):
        raise SourceError(f"{shown} has a gate for {printable(foreign[0])}, which no expert has.")
    own = {targets[name]: each for name, each in gates.items()}
    for target, layout in layouts.items():
        _check_tensors(own.get(target, gate), layout, parts[target], f"{target} of {shown}")
        _check_known(
            own.get(target, gate), layout, {f"{target}.{n}": n for n in parts[target]}, router, shown
        )

    def read(target: Target) -> Bank:
        bank = _bank(tasks, target, layouts[target], parts[target])
        _check_finite(bank, target, shown)
        return bank

    extras = {n.removeprefix(EXTRAS): t.read() for n, t in router.items() if n.startswith(EXTRAS)}
    first = tasks[0]
    return Bundle(
        names, gate, layouts, read, widest(each.dtype for each in tasks), first.base, first.config, record,
        own, extras, shared=any(key.startswith(SHARED) for key in router),
    )  # fmt: skip


def _fetched(name: HubName) -> Path:
    """The files of a bundle on the Hub, in the cache, at one commit."""
    listing = ask(name)
    start = f"{name.path}/" if name.path else ""
    own = sorted(f for f in listing.files if f.startswith(start) and f.removeprefix(start) in Files())
    if f"{start}{RECORD}" not in own:
        raise SourceError(f"{name.shown} has no {RECORD}, so it is no bundle.")
    return download(name, listing.commit, own) / name.path


def _said(record: Mapping[str, Any], shown: str) -> tuple[Gate, dict[str, Gate], tuple[str, ...]]:
    """Its gate, the gates of single modules, and the names of its experts."""
    if record.get("experts") == []:
        raise SourceError(f"The {RECORD} of {shown} names no expert.")
    try:
        names = tuple(str(each["name"]) for each in record["experts"])
        gates = {str(name): _gate(said, len(names)) for name, said in record.get("gates", {}).items()}
        gate = _gate(record["gate"], len(names))
    except UsageError as error:
        raise SourceError(f"The {RECORD} of {shown} has a gate that is not read here: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise SourceError(f"The {RECORD} of {shown} does not say its gate and its experts.") from error
    return gate, gates, names


def _gate(said: Any, experts: int) -> Gate:
    options = said["options"]
    if not isinstance(options, dict):
        raise TypeError
    found = {n: tuple(v) if isinstance(v, list) else v for n, v in options.items()}
    return make(str(said["name"]), found).settled(experts)


def _parts(router: Tensors, targets: Mapping[str, Target], shown: str) -> dict[Target, dict[str, Tensor]]:
    """The tensors of the router by module."""
    shared = {key.removeprefix(SHARED): t for key, t in router.items() if key.startswith(SHARED)}
    found: dict[Target, dict[str, Tensor]] = {target: {**shared} for target in targets.values()}
    for key, tensor in router.items():
        if key.startswith((EXTRAS, SHARED)):
            continue
        module, _, name = key.rpartition(".")
        if module not in targets:
            raise SourceError(f"{ROUTER} of {shown} has {printable(key)}, whose module no expert has.")
        found[targets[module]][name] = tensor
    return found


def _layout(tasks: list[Adapter], target: Target, parts: Tensors, shown: str) -> Layout:
    """Whose the units are. Raises SourceError: it is not said, or is not possible."""
    ranks = None
    if STARTS in parts and parts[STARTS].dtype == "I64" and parts[STARTS].shape == (len(tasks) + 1,):
        starts = parts[STARTS].read()
        ranks = np.diff(starts)
        most = [each.slots[target].rank for each in tasks]
        if starts[0] != 0 or (ranks < 0).any() or (ranks > most).any():
            ranks = None
    if ranks is None:
        raise SourceError(f"{ROUTER} of {shown} does not say whose the units of {printable(target)} are.")
    return Layout(tasks[0].slots[target].shape, tuple(map(int, ranks)))


def _check_tensors(gate: Gate, layout: Layout, parts: Tensors, where: str) -> None:
    for name, shape in gate.shapes(layout).items():
        if name not in parts or parts[name].shape != shape or parts[name].dtype != "F32":
            raise SourceError(f"{ROUTER} lacks {name} {shape} of {printable(where)}, which its gate needs.")


def _check_known(gate: Gate, layout: Layout, keys: Mapping[str, str], router: Tensors, shown: str) -> None:
    """Raises SourceError: there is a tensor that the gate does not know, so that it may be of another.

    Args:
        keys: the key that each tensor of the module would have, and its name; some are shared, and have none.
    """
    known = {STARTS, *gate.shapes(layout)}
    for key, name in keys.items():
        if name not in known and key in router:
            raise SourceError(f"{ROUTER} of {shown} has {printable(key)}, which its gate does not know.")


def _bank(tasks: list[Adapter], target: Target, layout: Layout, parts: Tensors) -> Bank:
    slots = [each.slots[target] for each in tasks]
    pairs = [(_up(s)[:, :rank], s.down.read()[:rank]) for s, rank in zip(slots, layout.ranks, strict=True)]
    up, down = np.concatenate([p[0] for p in pairs], axis=1), np.concatenate([p[1] for p in pairs])
    tensors: dict[str, Array] = {name: tensor.read() for name, tensor in parts.items() if name != STARTS}
    return Bank(layout, up, down, tensors)


def _check_finite(bank: Bank, target: Target, shown: str) -> None:
    """Raises SourceError: its units or its gate hold something that is not a number."""
    for name, array in {"lora_A": bank.down, "lora_B": bank.up, **bank.tensors}.items():
        if not np.isfinite(wide(array)).all():
            raise SourceError(
                f"{shown} has NaN or infinity in {name} of {printable(target)}: it is damaged, or its "
                "training diverged."
            )


def _up(slot: Slot) -> Array:
    """With its scale, which is 1 unless somebody has changed the config."""
    up = slot.up.read()
    return up if slot.scale == 1.0 else (wide(up) * slot.scale).astype(up.dtype)
