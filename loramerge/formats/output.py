"""Writing an adapter in its dialect: a folder or one self-describing .safetensors, tensor by tensor."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from loramerge.adapters.adapter import Adapter, Tensor
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.errors import IncompatibleError, LoramergeError, UsageError, VerificationError, printable, say
from loramerge.formats.dialects import PEFT, Dialect
from loramerge.formats.dialects.dialect import check_dtype, check_place
from loramerge.formats.files.atomic import Confirm, new_file, new_folder, writing
from loramerge.formats.files.destination import RECORD
from loramerge.formats.files.safetensors import Writer, open_file
from loramerge.formats.files.safetensors import file_size as container_size
from loramerge.formats.files.safetensors.dtypes import BITS
from loramerge.formats.files.views import in_pieces, pieces
from loramerge.formats.peft import portable
from loramerge.formats.peft.alpha import OURS, SCHEMA
from loramerge.formats.peft.keys import Shelf, width
from loramerge.formats.peft.names import WEIGHTS
from loramerge.formats.peft.profiles import Profile
from loramerge.formats.reader import load_path
from loramerge.formats.training import MODEL as HASHED
from loramerge.formats.training import hashes

if TYPE_CHECKING:
    from loramerge.formats.masks import MaskPlan

# not called .safetensors: some servers load all of these in a folder
APART = "loramerge.extras"


@dataclass(frozen=True, eq=False, repr=False)
class Outline:
    """What must be known of an adapter before its first tensor is written.

    Args:
        shapes: target -> (out, in).   rank: of every module.   dtype: safetensors name.
        config: adapter_config.json.
        recipe: what a bare file keeps of its making in its header.
    extras: tensors beside the pairs.   apart: (source, key) -> those in a file of their own.
    ranks: place of a target -> rank, for those that have another than `rank`.
    profile: `portable` or `compact`.
    masks: those that come with the merge.
    dialect: the format it is written in.   kept: metadata that all sources share.
    scales: target -> scale, where it is not 1; only a dialect that keeps alphas has any.
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
    dialect: Dialect = PEFT
    kept: Mapping[str, str] = field(default_factory=dict)
    scales: Mapping[Target, float] = field(default_factory=dict)

    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Tensor name -> (dtype, shape)."""
        names = self.dialect.keys(self.shapes)
        entries: dict[str, tuple[str, tuple[int, ...]]] = {}
        for target, size in self.shapes.items():
            sizes = self.dialect.shapes(target, size, self.width(target))
            for name, shape in zip(names(target), sizes, strict=True):
                entries[name] = (self.dtype, shape)
        return entries | {key: (tensor.dtype, tensor.shape) for key, tensor in self.beside().items()}

    def widths(self) -> dict[Target, int]:
        """Target -> the units that it is stored with."""
        return {target: self.width(target) for target in self.shapes}

    def beside(self) -> dict[str, Tensor]:
        """The tensors that are no factors."""
        return {**self.dialect.beside(self.widths(), self.scales), **self.extras}

    def width(self, target: Target) -> int:
        """The units that a target is stored with."""
        return width(target, self.ranks.get(target.place, self.rank))

    def blocks(self) -> Counter[str]:
        """Place of the targets that share one pair of tensors -> how many of them there are."""
        return Counter(target.place for target in self.shapes if target.layout.blocks > 1)

    def held(self, target: Target) -> int:
        """Bytes of a target as it is stored; of one that shares its tensors, with these whole.

        One that keeps the form of its sources is stored in tensors beside the pairs, and has none of its own.
        """
        if target not in self.shapes:
            return 0
        whole = target.layout.blocks if target.layout.blocks > 1 else 0
        return (1 + whole) * self.width(target) * sum(self.shapes[target]) * BITS[self.dtype] // 8

    def held_beside(self) -> dict[str, int]:
        """Key -> bytes that are held while a tensor that is no factor is written."""
        return {key: in_pieces(tensor) for key, tensor in {**self.extras, **self._apart()}.items()}

    def _apart(self) -> dict[str, Tensor]:
        return {f"{key} of {source}": tensor for (source, key), tensor in self.apart.items()}

    def scale(self, target: Target) -> float:
        """That of the factors as they are stored."""
        return self.scales.get(target, 1.0)

    @property
    def largest(self) -> int:
        """The largest rank of a module."""
        return max(self.rank, *self.ranks.values()) if self.ranks else self.rank

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(prod(shape) * BITS[dtype] // 8 for dtype, shape in self.layout().values())

    def metadata(self, bare: bool) -> dict[str, str]:
        """The header's metadata: what the dialect says, and in one file how it was made."""
        said = self.dialect.metadata(self.widths(), self.scales, self.kept, bare)
        said |= self.dialect.labels(self.extras)
        return said | self.header() if bare else said

    def header(self) -> dict[str, str]:
        """How a bare file was made; one of PEFT's names says only there that its scale is folded."""
        if self.dialect.name != PEFT.name and not self.recipe:
            return {}
        config = {"config": portable.summary(self.config)} if self.dialect.name == PEFT.name else {}
        record = {"schema": SCHEMA, **config, **self.recipe}
        return {OURS: json.dumps(record, sort_keys=True, separators=(",", ":"))}


@dataclass(frozen=True, eq=False, repr=False)
class Draft:
    """An output under way: put every tensor, close, read it back; it appears when the block ends."""

    out: Path
    where: Path
    outline: Outline
    writer: Writer
    shelf: Shelf
    bare: bool
    marks: dict[str, int] = field(default_factory=dict)
    masks: Writer | None = None

    @property
    def weights(self) -> Path:
        """The file of the tensors."""
        return self.where if self.bare else self.where / (self.outline.dialect.weights or WEIGHTS)

    def put(self, target: Target, up: Array, down: Array) -> None:
        """Write one module; threads may put different modules at once."""
        self.shelf.put(target, up, down)

    def keep(self, target: Target, masks: Mapping[str, Array]) -> None:
        """Write the masks of one module; a source that changes nothing there wants nothing back."""
        plan = self.outline.masks
        if self.masks is None or plan is None:
            return
        from loramerge.formats.masks import name_of, packed_shape  # few merges have masks

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
        said = self.outline if recipe is None else replace(self.outline, recipe=recipe)
        if recipe is not None and self.bare:
            self.writer.amend(said.metadata(bare=True))
        elif recipe is not None:
            _write_json(self.where / RECORD, {**recipe, "report": report})
        for key, tensor in self.outline.beside().items():
            self.marks[key] = 0
            self.writer.write_pieces(key, self._marked(key, tensor))
        if HASHED in self.outline.kept:
            told = said.metadata(self.bare)
            self.writer.amend(told | hashes(self.weights, self.outline.layout(), told))
        self.writer.close()

    def _marked(self, key: str, tensor: Tensor) -> Iterator[Array]:
        for some in pieces(tensor):
            self.marks[key] = crc32(np.ascontiguousarray(some).view(np.uint8).data, self.marks[key])
            yield some

    def reread(self) -> Adapter:
        """What now lies on the disk, read as any user's adapter is.

        Raises:
            VerificationError: the reference library of the format does not accept it, or we do not.
        """
        _check_container(self.weights)
        self._check_extras()
        try:
            return load_path(self.where, str(self.out))
        except LoramergeError as error:
            raise VerificationError(f"The output was written wrongly: {error}") from error

    def _check_extras(self) -> None:
        written = open_file(self.weights, str(self.out)).tensors
        for key, mark in self.marks.items():
            found = 0
            for some in pieces(written[key]):
                found = crc32(some.view(np.uint8).data, found)
            if found != mark:
                raise VerificationError(f"{printable(key)} was read back with other values. Run it again.")


@contextmanager
def create(
    out: Path, bare: bool, outline: Outline, overwrite: bool = False, confirm: Confirm = lambda: None
) -> Iterator[Draft]:
    """A draft that becomes `out` when the block ends, and leaves no trace if it raises.

    `confirm` is called last of all, and may raise.

    Raises:
        OutputError: `out` exists and `overwrite` is not set, or cannot be written.
    """
    dialect = outline.dialect
    check_place(dialect, bare, out)
    check_dtype(dialect, outline.dtype)
    begin = new_file if bare else new_folder
    with begin(out, overwrite, confirm) as where:
        if bare and outline.apart:
            raise IncompatibleError(
                "Tensors of several sources are kept apart, which one file cannot do: write a folder, or use "
                f"{say('extras', 'first')}."
            )
        if not bare:
            for name, content in dialect.sidecars(outline.widths(), outline.config).items():
                _write_json(where / name, content)
            _write_apart(where / APART, outline.apart)
        weights = where if bare else where / (dialect.weights or WEIGHTS)
        with Writer(weights, outline.layout(), outline.metadata(bare), name=str(out)) as writer:
            shelf = Shelf(
                dialect.keys(outline.shapes),
                writer.write,
                outline.blocks(),
                dialect.lay,
                dialect.shapes,
                dialect.within,
            )
            draft = Draft(out, where, outline, writer, shelf, bare)
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
            f"The masks of tasks need a folder beside the merge: give {say('out')} a name "
            f"without .safetensors."
        )
    from loramerge.formats.masks import FILE, FOLDER

    with writing(where):
        (where / FOLDER).mkdir()
    with Writer(where / FOLDER / FILE, outline.masks.layout(), outline.masks.header("0" * 64)) as writer:
        yield writer


def file_size(outline: Outline, bare: bool) -> int:
    """The bytes of the weights file that `create` would write."""
    return container_size(outline.layout(), outline.metadata(bare))


def is_bare(out: Path) -> bool:
    """Whether this name asks for one file."""
    return out.suffix == ".safetensors"


def _check_container(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            file.keys()
    except SafetensorError as error:
        raise VerificationError(f"The output is not a valid safetensors file: {printable(error)}.") from error


def _write_apart(path: Path, tensors: Mapping[tuple[str, str], Tensor]) -> None:
    """A safetensors file by another name: servers read every *.safetensors of a folder as weights."""
    if not tensors:
        return
    named = {f"{source}/{key}": tensor for (source, key), tensor in tensors.items()}
    with Writer(path, {key: (t.dtype, t.shape) for key, t in named.items()}, {}) as writer:
        for key, tensor in named.items():
            writer.write_pieces(key, pieces(tensor))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with writing(path):
        path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
