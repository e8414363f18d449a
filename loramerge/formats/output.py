"""Writing an adapter: a PEFT folder or one self-describing .safetensors, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from loramerge.adapter import Adapter
from loramerge.backend import Array
from loramerge.dtypes import FLOATS
from loramerge.errors import LoramergeError, VerificationError, printable
from loramerge.formats import portable
from loramerge.formats.alpha import OURS, SCHEMA
from loramerge.formats.atomic import new_file, new_folder, writing
from loramerge.formats.keys import Keys, Shelf, shapes, width
from loramerge.formats.names import WEIGHTS
from loramerge.formats.peft import CONFIG, load_file, load_folder
from loramerge.formats.profiles import Profile
from loramerge.formats.safetensors import Writer
from loramerge.formats.safetensors import file_size as container_size
from loramerge.target import Target

RECORD = "loramerge.json"


@dataclass(frozen=True, eq=False)
class Outline:
    """What must be known of an adapter before its first tensor is written.

    Args:
        shapes: target -> (out, in).   rank: of every module.   dtype: safetensors name.
        config: adapter_config.json.
        recipe: what a bare file keeps of its making in its header.
        ranks: place of a target -> rank, for those that have another than `rank`.
        profile: `portable` or `compact`.
    """

    shapes: Mapping[Target, tuple[int, int]]
    rank: int
    dtype: str
    config: Mapping[str, Any]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    profile: Profile = "portable"

    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Tensor name -> (dtype, shape)."""
        keys = Keys(self.shapes)
        entries: dict[str, tuple[str, tuple[int, ...]]] = {}
        for target, size in self.shapes.items():
            for name, shape in zip(keys.of(target), shapes(target, size, self.width(target)), strict=True):
                entries[name] = (self.dtype, shape)
        return entries

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
        return sum(prod(shape) * FLOATS[dtype].itemsize for dtype, shape in self.layout().values())

    def header(self) -> dict[str, str]:
        """The one metadata key of a bare file: scale folded, so nothing else decides its strength."""
        record = {"schema": SCHEMA, "config": portable.summary(self.config), **self.recipe}
        return {OURS: json.dumps(record, sort_keys=True, separators=(",", ":"))}


@dataclass(frozen=True, eq=False)
class Draft:
    """An output under way: put every tensor, close, read it back; it appears when the block ends."""

    out: Path
    where: Path
    writer: Writer
    outline: Outline
    shelf: Shelf
    bare: bool

    def put(self, target: Target, up: Array, down: Array) -> None:
        """Write one module; threads may put different modules at once."""
        self.shelf.put(target, up, down)

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
        self.writer.close()

    def reread(self) -> Adapter:
        """What now lies on the disk, read as any user's adapter is.

        Raises:
            VerificationError: the reference library of the format does not accept it, or we do not.
        """
        _check_container(self.where if self.bare else self.where / WEIGHTS)
        read = load_file if self.bare else load_folder
        try:
            return read(self.where, str(self.out))
        except LoramergeError as error:
            raise VerificationError(f"The output was written, but not as it should be: {error}") from error


@contextmanager
def create(out: Path, bare: bool, outline: Outline, overwrite: bool = False) -> Iterator[Draft]:
    """A draft that becomes `out` when the block ends, and leaves no trace if it raises.

    Raises:
        OutputError: `out` exists and `overwrite` is not set, or cannot be written.
    """
    begin = new_file if bare else new_folder
    with begin(out, overwrite) as where:
        if not bare:
            _write_json(where / CONFIG, outline.config)
        metadata = _metadata(outline, bare)
        weights = where if bare else where / WEIGHTS
        with Writer(weights, outline.layout(), metadata, name=str(out)) as writer:
            yield Draft(out, where, writer, outline, Shelf(Keys(outline.shapes), writer.write), bare)


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


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with writing(path):
        path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
