"""Masks of tasks beside a merge: ``masks/masks.safetensors``, one uint8 tensor for each task and module.

Eight entries of a row of ΔW lie in a byte, the first in its highest bit. The file lies in a folder of its
own, because some servers read every .safetensors beside an adapter as weights.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.adapters.presence import is_file
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.errors import IncompatibleError, SourceError, UsageError, printable
from loramerge.formats.files.atomic import put_back
from loramerge.formats.files.safetensors import open_file

# in a folder of their own: servers load every .safetensors beside the weights
FOLDER, FILE, KEY = "masks", "masks.safetensors", "loramerge.masks"
PLACE = f"{FOLDER}/{FILE}"  # in the folder of the merge
Shapes = Mapping[Target, tuple[int, int]]  # (out, in)


@dataclass(frozen=True, eq=False, slots=True)
class MaskPlan:
    """The masks that a merge will have.

    Args:
        tasks: name of a source -> the modules that it has, and its rank.   shapes: of all modules.
    """

    tasks: Mapping[str, Mapping[Target, int]]
    shapes: Shapes

    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Tensor name -> (dtype, shape)."""
        return {
            name_of(task, target): ("U8", packed_shape(self.shapes[target]))
            for task, targets in self.tasks.items()
            for target in targets
        }

    @property
    def nbytes(self) -> int:
        return sum(prod(shape) for _, shape in self.layout().values())

    def header(self, mark: str) -> dict[str, str]:
        """What `restore` must know: tasks with their largest rank, and the merge that the masks are for."""
        ranks = {task: max(targets.values(), default=1) for task, targets in self.tasks.items()}
        return {KEY: json.dumps({"tasks": ranks, "merge": mark}, sort_keys=True)}


def name_of(task: str, target: Target) -> str:
    return f"{task}/{target}"


def packed_shape(shape: tuple[int, int]) -> tuple[int, int]:
    return shape[0], -(-shape[1] // 8)


def mark_of(fingerprints: Mapping[Target, str]) -> str:
    """A fingerprint of a whole merge, from those of its modules."""
    lines = "\n".join(f"{target} {fingerprints[target]}" for target in sorted(fingerprints))
    return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, eq=False, slots=True)
class Masks:
    """The masks of one task, as they lie on the disk.

    Args:
        rank: the largest that the task's adapter had.   mark: of the merge that they are for.
        tensors: by module name.
    """

    task: str
    rank: int
    mark: str
    tensors: Mapping[str, Tensor]

    def read(self, module: str, shape: tuple[int, int]) -> Array:
        """(out, ⌈in/8⌉) of one module; zeros where the task has none.

        Raises:
            IncompatibleError: it has another shape.
        """
        if module not in self.tensors:
            return np.zeros(packed_shape(shape), np.uint8)
        tensor = self.tensors[module]
        if tensor.dtype != "U8" or tensor.shape != packed_shape(shape):
            raise IncompatibleError(
                f"The mask of {printable(module)} is {tensor.dtype}{tensor.shape}, and the module is "
                f"{shape[0]}×{shape[1]}: these masks belong to another merge."
            )
        return tensor.read()


def tasks_in(folder: Path) -> tuple[str, ...]:
    """The tasks that the masks beside a merge are for; none if it has no masks, or others than ours.

    Raises:
        SourceError: they are malformed.
    """
    path = folder / PLACE
    said = open_file(path).metadata if os.path.isfile(path) else {}
    return tuple(_said(said, printable(path))[0]) if KEY in said else ()


def open_masks(folder: Path, task: str, shown: str | None = None) -> Masks:
    """The masks of one task beside a merge. Only the header is read. `shown`: its name for messages.

    Raises:
        SourceError: there are none, or they are malformed.   UsageError: no such task.
    """
    put_back(folder)
    path, shown = folder / PLACE, printable(folder) if shown is None else printable(shown)
    if not is_file(path):
        raise SourceError(f"{shown} has no {PLACE}: only a merge by mergevla can be restored.")
    name = f"{shown}/{PLACE}"
    file = open_file(path, name)
    ranks, mark = _said(file.metadata, name)
    if task not in ranks:
        raise UsageError(f"{shown} has no task {printable(task)}; it has {', '.join(map(printable, ranks))}.")
    start = f"{task}/"
    tensors = {key.removeprefix(start): t for key, t in file.tensors.items() if key.startswith(start)}
    return Masks(task, ranks[task], mark, tensors)


def _said(metadata: Mapping[str, str], name: str) -> tuple[dict[str, int], str]:
    try:
        said: Any = json.loads(metadata.get(KEY, ""))
        ranks, mark = said["tasks"], said["merge"]
        good = isinstance(mark, str) and all(type(rank) is int and rank >= 1 for rank in ranks.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        good = False
    if not good:
        raise SourceError(f"{name} does not say which tasks its masks are for: write it again by combine.")
    return ranks, mark


def planned(
    names: Sequence[str], ranks: Mapping[Target, tuple[int, ...]], weighted: Sequence[bool], shapes: Shapes
) -> MaskPlan:
    """The masks of all sources that have a weight.

    Args:
        names: (T,) of sources.   ranks: of each source in a module, 0 where it has none.

    Raises:
        IncompatibleError: a name is no UTF-8, as all names of tensors must be.
    """
    if strange := next((name for name in names if not _is_utf8(name)), None):
        raise IncompatibleError(
            f"The masks of {printable(strange)} would have its name, which is no UTF-8: "
            "give its file or folder another."
        )
    tasks = {
        name: {target: signature[t] for target, signature in ranks.items() if signature[t]}
        for t, name in enumerate(names)
        if weighted[t]
    }
    return MaskPlan(tasks, shapes)


def _is_utf8(name: str) -> bool:
    try:
        return bool(name.encode()) or not name
    except UnicodeEncodeError:
        return False
