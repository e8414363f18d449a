"""A bundle on the disk: PEFT folders of one rank, one file of router tensors, a record, a README."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.adapters.adapter import Adapter, Held, Slot
from loramerge.adapters.arguments import checked
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.arrays.workers import go_on, workers
from loramerge.errors import UsageError, VerificationError, printable, say
from loramerge.formats.bundles import README, Files, task
from loramerge.formats.dialects import PEFT
from loramerge.formats.files.atomic import Confirm, new_folder, writing
from loramerge.formats.files.destination import RECORD, ROUTER, a_path
from loramerge.formats.files.safetensors import Writer
from loramerge.formats.output import is_bare
from loramerge.formats.peft import portable
from loramerge.formats.peft.names import WEIGHTS
from loramerge.formats.peft.read import CONFIG
from loramerge.request.effort import EFFORT, Effort
from loramerge.request.progress import Stage, Tell
from loramerge.routing.bank import Bank
from loramerge.routing.bundle import Bundle
from loramerge.routing.facts import Facts, together
from loramerge.routing.reader import EXTRAS, SHARED, STARTS, load_bundle
from loramerge.routing.readme import readme
from loramerge.routing.record import recorded


@checked("bundle", "out", "overwrite")
def save_bundle(bundle: Bundle, out: str | Path, overwrite: bool = False) -> None:
    """Write a bundle as a folder that PEFT's `create_arrow_model` loads, and read it back.

    Raises:
        UsageError: `out` is the name of a file.
        OutputError: `out` exists and `overwrite` is not set, or cannot be written.
        VerificationError: what was read back is not what was written.
    """
    write_bundle(bundle, out, overwrite)


def write_bundle(
    bundle: Bundle,
    out: str | Path,
    overwrite: bool = False,
    confirm: Confirm = lambda: None,
    effort: Effort = EFFORT,
    tell: Tell | None = None,
) -> None:
    """As `save_bundle`, with limits for the machine and a listener for progress; `confirm` is asked before
    the rename."""
    out = a_path(out, "out")
    if is_bare(out):
        raise UsageError(f"A bundle is a folder: give {say('out')} a name without .safetensors.")
    with new_folder(out, overwrite, confirm, own=Files()) as where:
        marks = _written(bundle, where, effort, tell)
        _check_read_back(load_bundle(where, str(out)), marks, out)


def _written(bundle: Bundle, where: Path, effort: Effort, tell: Tell | None) -> dict[Target, str]:
    """Every module in its files; a fingerprint of each."""
    names, rank = PEFT.keys(bundle.layouts), max(bundle.rank, 1)
    with ExitStack() as stack:
        tasks = [
            stack.enter_context(_task(bundle, where / task(e), rank)) for e in range(len(bundle.experts))
        ]
        router = stack.enter_context(Writer(where / ROUTER, _router(bundle), {}))
        stage = stack.enter_context(Stage(tell, "writing", len(bundle)))

        def write(target: Target) -> tuple[Target, tuple[str, Facts]]:
            bank = bundle.read(target)
            go_on()
            for e, writer in enumerate(tasks):
                mine = bank.layout.of(e)
                up, down = _padded(bank.up[:, mine], rank, 1), _padded(bank.down[mine], rank, 0)
                for name, factor in zip(names(target), PEFT.lay(target, up, down), strict=True):
                    writer.write(name, factor)
            router.write(f"{target}.{STARTS}", np.array(bank.layout.starts, np.int64))
            if not bundle.shared:
                for name, tensor in bank.tensors.items():
                    router.write(f"{target}.{name}", tensor)
            stage.step()
            return target, (mark(bank), Facts.of(bundle.gate_of(target), bank))

        with workers(effort.holding(_most(bundle)).workers, stage.tick) as run:
            seen = dict(run(write, bundle.layouts))
        for target in _holder(bundle):
            for name, tensor in bundle.read(target).tensors.items():
                router.write(f"{SHARED}{name}", tensor)
        for name, tensor in bundle.extras.items():
            router.write(EXTRAS + name, tensor)
    bundle = recorded(bundle, **together([facts for _, facts in seen.values()]))
    write_text(where / RECORD, json.dumps(bundle.record, indent=2, sort_keys=True) + "\n")
    write_text(where / README, readme(bundle))
    return {target: found for target, (found, _) in seen.items()}


def _most(bundle: Bundle) -> int:
    """Bytes that a worker holds for the largest module: factors, their SVD, what is written."""
    return max((8 * 4 * each.units * sum(each.shape) for each in bundle.layouts.values()), default=0)


def _task(bundle: Bundle, place: Path, rank: int) -> Writer:
    """The folder of one expert with its config, and the open file of its weights."""
    with writing(place):
        os.mkdir(place)
    write_text(place / CONFIG, json.dumps(dict(config(bundle, rank)), indent=2, sort_keys=True) + "\n")
    names = PEFT.keys(bundle.layouts)
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for target, each in bundle.layouts.items():
        shapes = PEFT.shapes(target, each.shape, rank)
        layout |= {name: (bundle.dtype, shape) for name, shape in zip(names(target), shapes, strict=True)}
    return Writer(place / WEIGHTS, layout, {"format": "pt"})


def config(bundle: Bundle, rank: int) -> dict[str, Any]:
    """adapter_config.json of every expert: one rank, alpha = r, the modules of all of them."""
    held = np.zeros((1, 1))
    slots = dict.fromkeys(bundle.layouts, Slot(Held(held), Held(held), 1.0))
    template = Adapter("bundle", slots, bundle.base, config=bundle.config)
    named = {"target_modules": sorted(set(map(_named, bundle.layouts)))}
    return {**portable.config([template], bundle.layouts, rank), **named}


def _named(target: Target) -> str:
    """What a config calls a module: PEFT's router goes to every layer whose name ends so.

    Under this name PEFT gives a layer without experts pairs that are zero; under its whole name it would give
    it none, and the router would find nothing to weigh. Many parts of a model are called by a number, so that
    such a module is named in full.
    """
    last = target.path.rpartition(".")[2]
    return target.path if last.isdecimal() else last


def _router(bundle: Bundle) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensor name -> (dtype, shape)."""
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for target, each in bundle.layouts.items():
        layout[f"{target}.{STARTS}"] = ("I64", (each.experts + 1,))
        shapes = {} if bundle.shared else bundle.gate_of(target).shapes(each)
        layout |= {f"{target}.{name}": ("F32", shape) for name, shape in shapes.items()}
    for target in _holder(bundle):
        shapes = bundle.gate_of(target).shapes(bundle.layouts[target])
        layout |= {f"{SHARED}{name}": ("F32", shape) for name, shape in shapes.items()}
    return layout | {EXTRAS + name: ("F32", tensor.shape) for name, tensor in bundle.extras.items()}


def _holder(bundle: Bundle) -> list[Target]:
    """The module whose gate tensors are written for all; none if each has its own."""
    return list(bundle)[:1] if bundle.shared else []


def _padded(factor: Array, rank: int, axis: int) -> Array:
    widths = [(0, rank - factor.shape[axis] if a == axis else 0) for a in range(2)]
    return np.pad(factor, widths)


def mark(bank: Bank) -> str:
    """A fingerprint of a bank's bytes."""
    said = hashlib.sha256()
    for array in (bank.up, bank.down, *(bank.tensors[name] for name in sorted(bank.tensors))):
        said.update(np.ascontiguousarray(array).view(np.uint8).data)
    return said.hexdigest()


def _check_read_back(bundle: Bundle, marks: Mapping[Target, str], out: Path) -> None:
    if bundle.layouts.keys() != marks.keys():
        raise VerificationError(f"{printable(out)} was read back with other modules. Run it again.")
    for target, wanted in marks.items():
        if mark(bundle.read(target)) != wanted:
            raise VerificationError(f"{printable(target)} was read back with other values. Run it again.")


def write_text(path: Path, text: str) -> None:
    """A text that lasts: files in folders below the output are flushed by who writes them."""
    with writing(path), open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
