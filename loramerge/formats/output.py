"""Writing an adapter: a PEFT folder or one self-describing .safetensors, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.adapter import Adapter, Tensor
from loramerge.backend import Array
from loramerge.errors import IncompatibleError, LoramergeError, UsageError, VerificationError, printable
from loramerge.formats import portable
from loramerge.formats.alpha import OURS, SCHEMA
from loramerge.formats.atomic import new_file, new_folder, writing
from loramerge.formats.keys import Keys, Shelf, shapes, width
from loramerge.formats.masks import FILE, FOLDER, MaskPlan, name_of, packed_shape
from loramerge.formats.names import WEIGHTS
from loramerge.formats.peft import CONFIG, load_file, load_folder
from loramerge.formats.profiles import Profile
from loramerge.formats.safetensors import Writer, open_file
from loramerge.formats.safetensors import file_size as container_size
from loramerge.formats.safetensors.dtypes import BITS
from loramerge.target import Target

RECORD = "loramerge.json"
APART = "loramerge.extras"


@dataclass(frozen=True, eq=False)
class Outline:
    """What must be known of an adapter before its first tensor is written.

    Args:
        shapes: target -> (out, in).   rank: of every module.   dtype: safetensors name.
        config: adapter_config.json.
        recipe: what a bare file keeps of its making in its header.
    extras: tensors that are no pair.   apart: (source, key) -> those in a file of their own.
    ranks: place of a target -> rank, for those that have another than `rank`.
    profile: `portable` or `compact`.
    masks: those that come with the merge.
    """

    shapes: Mapping[Target, tuple[int, int]]
    rank: int
    dtype: str
    config: Mapping[str, Any]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    apart: Mapping[tuple[str, str], Tensor] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    profile: Profile = "portable"
    masks: MaskPlan | None = None

    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Tensor name -> (dtype, shape)."""
        keys = Keys(self.shapes)
        entries: dict[str, tuple[str, tuple[int, ...]]] = {}
        for target, size in self.shapes.items():
            for name, shape in zip(keys.of(target), shapes(target, size, self.width(target)), strict=True):
                entries[name] = (self.dtype, shape)
        return entries | {key: (tensor.dtype, tensor.shape) for key, tensor in self.extras.items()}

    def width(self, target: Target) -> int:
        """The units that a target is stored with."""
        return width(target, self.ranks.get(target.place, self.rank))

    @property
    def largest(self) -> int:
        """The largest rank of a module."""
        return max(self.rank, *self.ranks.values()) if self.ranks else self.rank

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(prod(shape) * BITS[dtype] // 8 for dtype, shape in self.layout().values())

    def header(self) -> dict[str, str]:
        """The one metadata key of a bare file: scale folded, so nothing else decides its strength."""
        record = {"schema": SCHEMA, "config": portable.summary(self.config), **self.recipe}
        return {OURS: json.dumps(record, sort_keys=True, separators=(",", ":"))}


@dataclass(frozen=True, eq=False)
class Draft:
    """An output under way: put every tensor, close, read it back; it appears when the block ends."""

    out: Path
    where: Path
    outline: Outline
    writer: Writer
    shelf: Shelf
    bare: bool
    marks: dict[str, bytes] = field(default_factory=dict)
    masks: Writer | None = None

    @property
    def weights(self) -> Path:
        """The file of the tensors."""
        return self.where if self.bare else self.where / WEIGHTS

    def put(self, target: Target, up: Array, down: Array) -> None:
        """Write one module; threads may put different modules at once."""
        self.shelf.put(target, up, down)

    def keep(self, target: Target, masks: Mapping[str, Array]) -> None:
        """Write the masks of one module; a source that changes nothing there wants nothing back."""
        plan = self.outline.masks
        if self.masks is None or plan is None:
            return
        for task, targets in plan.tasks.items():
            if target in targets:
                empty = np.zeros(packed_shape(plan.shapes[target]), np.uint8)
                self.masks.write(name_of(task, target), masks.get(task, empty))

    def close_masks(self, mark: str) -> None:
        """All masks are written; `mark` is that of the merge."""
        if self.masks is not None and self.outline.masks is not None:
            self.masks.amend(self.outline.masks.header(mark))
            self.masks.close()

    def close(self, recipe: Mapping[str, Any] | None = None, report: Mapping[str, Any] | None = None) -> None:
        """All modules are written: flush them to the disk, with how they were made.

        A bare file keeps the recipe in its header, which was written with one of the same length; a
        folder keeps recipe and report in a file of their own.
        """
        if recipe is not None and self.bare:
            self.writer.amend(replace(self.outline, recipe=recipe).header())
        elif recipe is not None:
            _write_json(self.where / RECORD, {**recipe, "report": report})
        self.shelf.finish()
        for key, tensor in self.outline.extras.items():
            array = np.ascontiguousarray(tensor.read())
            self.marks[key] = array.tobytes()
            self.writer.write(key, array)
        self.writer.close()

    def reread(self) -> Adapter:
        """What now lies on the disk, read as any user's adapter is.

        Raises:
            VerificationError: the reference library of the format does not accept it, or we do not.
        """
        _check_container(self.weights)
        self._check_extras()
        read = load_file if self.bare else load_folder
        try:
            return read(self.where, str(self.out))
        except LoramergeError as error:
            raise VerificationError(f"The output was written, but not as it should be: {error}") from error

    def _check_extras(self) -> None:
        written = open_file(self.weights, str(self.out)).tensors
        for key, mark in self.marks.items():
            if written[key].read().tobytes() != mark:
                raise VerificationError(f"{printable(key)} was read back with other values. Run it again.")


@contextmanager
def create(out: Path, bare: bool, outline: Outline, overwrite: bool = False) -> Iterator[Draft]:
    """A draft that becomes `out` when the block ends, and leaves no trace if it raises.

    Raises:
        OutputError: `out` exists and `overwrite` is not set, or cannot be written.
    """
    begin = new_file if bare else new_folder
    with begin(out, overwrite) as where:
        if bare and outline.apart:
            raise IncompatibleError(
                "Tensors of several sources are kept apart, which one file cannot do: write a folder, or use "
                "--extras first."
            )
        if not bare:
            _write_json(where / CONFIG, outline.config)
            _write_apart(where / APART, outline.apart)
        metadata = _metadata(outline, bare)
        weights = where if bare else where / WEIGHTS
        with Writer(weights, outline.layout(), metadata, name=str(out)) as writer:
            draft = Draft(out, where, outline, writer, Shelf(Keys(outline.shapes), writer.write), bare)
            with _masks(where, outline, bare) as beside:
                yield replace(draft, masks=beside)


@contextmanager
def _masks(where: Path, outline: Outline, bare: bool) -> Iterator[Writer | None]:
    """The file of masks, if there are any."""
    if outline.masks is None:
        yield None
        return
    if bare:
        raise UsageError(
            "The masks of tasks need a folder beside the merge: give -o a name without .safetensors."
        )
    with writing(where):
        (where / FOLDER).mkdir()
    with Writer(where / FOLDER / FILE, outline.masks.layout(), outline.masks.header("0" * 64)) as writer:
        yield writer


def file_size(outline: Outline, bare: bool) -> int:
    """The bytes of the weights file that `create` would write."""
    return container_size(outline.layout(), _metadata(outline, bare))


def _metadata(outline: Outline, bare: bool) -> dict[str, str]:
    return outline.header() if bare else {"format": "pt"}


def is_bare(out: Path) -> bool:
    """Whether this name asks for one file."""
    return out.suffix == ".safetensors"


def _check_container(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            file.keys()
    except SafetensorError as error:
        raise VerificationError(f"The output is no valid safetensors file: {printable(error)}.") from error


def _write_apart(path: Path, tensors: Mapping[tuple[str, str], Tensor]) -> None:
    """A safetensors file by another name: servers read every *.safetensors of a folder as weights."""
    if not tensors:
        return
    named = {f"{source}/{key}": tensor for (source, key), tensor in tensors.items()}
    with Writer(path, {key: (t.dtype, t.shape) for key, t in named.items()}, {}) as writer:
        for key, tensor in named.items():
            writer.write(key, tensor.read())


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with writing(path):
        path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
