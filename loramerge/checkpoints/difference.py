"""How a tuned model differs from its base: an update for every matrix, and the tensors beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.adapters.target import Kind, Target
from loramerge.algorithms.families.krylov import leading
from loramerge.algorithms.families.refit import energy
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array
from loramerge.arrays.noise import Noise, rounding
from loramerge.checkpoints import quantisation
from loramerge.checkpoints.alike import aligned, is_buffer, is_head, trained
from loramerge.checkpoints.checkpoint import Checkpoint, Key
from loramerge.checkpoints.modules import Weight, weights
from loramerge.checkpoints.parts import in_parts
from loramerge.checkpoints.single import is_image
from loramerge.checkpoints.subtract import Apart, Room, subtracted
from loramerge.checkpoints.tie import TYING, embedding, head, is_tied
from loramerge.errors import IncompatibleError, printable
from loramerge.formats import vocabulary

PAIRED: tuple[Kind, ...] = ("linear", "conv", "expert")  # embeddings are taken whole, if at all
EXACT = 1e-12  # of ‖ΔW‖², that a fit may lose more than the best: planted differences come back
OF_LOST = 4e-4  # the same, of what the best fit loses; by a bound that may be off by less than twice
ROUGH = 0.05  # enough to see whether there is more than rounding
FIRST = 16  # units, where a share of the energy says how many
CLEAR = 1e-2  # of ‖ΔW‖²: more that is lost is known from what is kept
ROWS = 1024  # of a table, that are looked at together
STRONG = 1e150  # ‖ΔW‖², above which roots of its singular values, and units of them, may leave float32

Chosen = Callable[[str], bool]


@dataclass(frozen=True, eq=False, slots=True)
class Module:
    """How one module differs.

    Args:
        target: the module.   shape: (out, in).
        energy: ‖ΔW‖².   lost: ‖ΔW − up @ down‖².
        noise: ‖·‖² that rounding of the weights adds by itself.
        above: units that are stronger than rounding makes them, of those kept.
        squares: (k,) σ² of what is kept, largest first.
        up: (out, k), down: (k, in); of no units where nothing is left, or only rounding.
        rounded: the whole difference is explained by rounding.
    """

    target: Target
    shape: tuple[int, int]
    energy: float
    lost: float
    noise: float
    above: int
    squares: Array
    up: Array
    down: Array
    rounded: bool = False

    def cut(self, rank: int) -> Module:
        """With fewer units."""
        if rank >= len(self.squares):
            return self
        lost = self.lost + float(self.squares[rank:].sum())
        above = min(self.above, rank)
        up, down = self.up[:, :rank], self.down[:rank]
        return replace(self, lost=lost, above=above, squares=self.squares[:rank], up=up, down=down)


@dataclass(frozen=True, slots=True)
class Beside:
    """A tensor that differs, but of which no low-rank update is made.

    Args:
        key: of the tensor.   energy: ‖difference‖²; None where the base has none of that name and shape.
        rounded: the difference is explained by rounding.
    """

    key: Key
    energy: float | None
    rounded: bool = False


@dataclass(frozen=True, eq=False)
class Pair:
    """A tuned model and its base, which hold the same tensors.

    Raises:
        IncompatibleError: they are of different architectures, or quantised in a way that is not read.

    Args:
        alone: tensors that only one of them names: of a head, or where a file is compared with a folder.
    """

    tuned: Checkpoint
    base: Checkpoint
    alone: Sequence[Key] = ()

    def __post_init__(self) -> None:
        for each in (self.tuned, self.base):
            quantisation.check_readable(each)
        if missing := sorted(self._needed - self.tuned.tensors.keys()):
            why = "they are different models, or named by different versions of a library"
            if self.tuned.bare != self.base.bare:
                why = "one is a file and one a folder, whose names differ: give two files, or two folders"
            raise IncompatibleError(
                f"{printable(self.tuned.name)} has no {printable(missing[0][1])}, which "
                f"{printable(self.base.name)} has: {why}."
            )

    @property
    def _needed(self) -> set[Key]:
        """The tensors of the base, without heads: they may be tied to the embedding, or of another task."""
        scales = {
            each for key in self.base.tensors if (each := quantisation.scale_of(self.base.tensors, key))
        }
        return {key for key in trained(self.base) if not is_head(key[1])} - scales

    @cached_property
    def _room(self) -> Room:
        return Room()

    @cached_property
    def weights(self) -> list[tuple[Weight, Weight]]:
        """The matrices of both that a low-rank update can belong to: (tuned, base).

        Raises:
            IncompatibleError: one has another shape.
        """
        theirs = {w.target: w for w in weights(self.base) if w.target.kind in PAIRED}
        ours = [w for w in weights(self.tuned) if w.target.kind in PAIRED and w.target in theirs]
        ours = [w for w in ours if w.key != self._twice and not _is_longer(w, theirs[w.target])]
        for weight in ours:
            if (other := theirs[weight.target]).shape != weight.shape:
                raise IncompatibleError(
                    f"{printable(weight.target)} is {list(weight.shape)} in {printable(self.tuned.name)} and "
                    f"{list(other.shape)} in {printable(self.base.name)}: they are different models."
                )
        return [(weight, theirs[weight.target]) for weight in ours]

    @cached_property
    def _twice(self) -> Key | None:
        """The head of the tuned model, if it is the embedding in both: what becomes of that says all."""
        return head(self.tuned) if is_tied(self.tuned) and is_tied(self.base) else None

    def module(self, pair: tuple[Weight, Weight], rank: int | None, share: float | None) -> Module:
        """How one module differs, with so many units, or as many as hold this share of its energy."""
        tuned, base = pair
        rows = tuned.rows_of(self.tuned.tensors), base.rows_of(self.base.tensors)
        apart = subtracted(*rows, tuned.stored, self._room)
        if not apart.energy <= STRONG:
            raise _damaged(str(tuned.target))
        if apart.energy == 0.0:
            return _nothing(tuned, 0.0, 0.0)
        noise = apart.tally.noise(self.tuned.tensors[tuned.key].dtype, self.base.tensors[base.key].dtype)
        if _is_noise(apart, noise):
            return replace(_nothing(tuned, apart.energy, noise.energy), rounded=True)
        return _fitted(tuned, apart, noise, rank, share)

    def beside(self, chosen: Chosen) -> Iterator[Beside]:
        """The tensors that differ and of which no update is made."""
        paired = {tuned.key for tuned, _ in self.weights}
        ours, theirs = (quantisation.unscaled(each.tensors) for each in (self.tuned, self.base))
        for key, tensor in ours.items():
            if key in paired or key == self._twice or not chosen(name_of(key)):
                continue
            known = theirs.get(key)
            if known is None and key == head(self.tuned) and is_tied(self.base):
                known = theirs[cast(Key, embedding(self.base))]
            if known is None and is_buffer(key, tensor):
                continue
            if known is None or known.shape != tensor.shape:
                yield Beside(key, None)
            elif any(apart := _apart(tensor, known)):
                if not apart[0] <= STRONG:
                    raise _damaged(name_of(key))
                yield Beside(key, apart[0], apart[0] <= apart[1])


def paired(tuned: Checkpoint, base: Checkpoint) -> Pair:
    """Both, where one may be a folder and one a file with the names of a folder. Errors as for `Pair`."""
    if tuned.bare != base.bare:
        tuned, base = map(_as_folder, (tuned, base))
    tuned, base = aligned(tuned, base)
    for each in (tuned, base):
        quantisation.check_readable(each)
    if "file" in tuned.models and not base.bare and (found := in_parts(tuned, base)):
        return Pair(*found)
    if "file" in base.models and not tuned.bare and (found := in_parts(base, tuned)):
        return Pair(found[1], found[0], found[2])
    return Pair(tuned, base, _heads(tuned, base))


def _heads(tuned: Checkpoint, base: Checkpoint) -> list[Key]:
    """The heads of the base that the tuned model has not, unless both tie them to the embedding."""
    missing = [key for key in trained(base) - tuned.tensors.keys() if is_head(key[1])]
    return sorted(key for key in missing if not (tuned.config(key[0]).get(TYING) and is_tied(base)))


def _is_longer(weight: Weight, other: Weight) -> bool:
    """Whether two heads are over different numbers of tokens: no update adds rows, as of an embedding."""
    (high, wide), (before, ins) = weight.shape, other.shape
    return vocabulary.named(weight.target.path) and wide == ins and high != before


def _as_folder(checkpoint: Checkpoint) -> Checkpoint:
    """A file whose tensors have the names that transformers or diffusers gives them, as the model it is."""
    if not checkpoint.bare or is_image(key for _, key in checkpoint.tensors):
        return checkpoint
    return replace(checkpoint, models={"model": checkpoint.models["file"]})


def _damaged(name: str) -> IncompatibleError:
    return IncompatibleError(
        f"{printable(name)} holds values that are no finite numbers, or differs by more than float32 holds: "
        "one of the models is damaged."
    )


def name_of(key: Key) -> str:
    """The name of a tensor against which a pattern of the user is matched."""
    part, name = key
    return name if part in ("model", "file") else f"{part}.{name}"


def _nothing(weight: Weight, whole: float, noise: float) -> Module:
    (outs, ins), none = weight.shape, np.zeros(0)
    up, down = np.zeros((outs, 0), np.float32), np.zeros((0, ins), np.float32)
    return Module(weight.target, weight.shape, whole, whole, noise, 0, none, up, down)


def _is_noise(apart: Apart, noise: Noise) -> bool:
    """Whether a difference is only rounding. It is estimated, and only where the difference is small."""
    if not noise.explains(apart.energy, 0.0):
        return False
    strongest, _ = leading(apart.matrix, 1, EXACT, ROUGH, apart.sketch)
    return noise.explains(apart.energy, energy(strongest))


def _fitted(weight: Weight, apart: Apart, noise: Noise, rank: int | None, share: float | None) -> Module:
    whole, most = apart.energy, min(weight.shape)
    width = min(rank or FIRST, most)
    while True:
        left, right = leading(apart.matrix, width, EXACT, OF_LOST, apart.sketch)
        squares = (left.astype(np.float64) ** 2).sum(axis=0)
        kept = np.cumsum(squares)
        if share is None or kept[-1] >= share * whole * (1 - 1e-9) or width == most:
            break
        width = min(2 * width, most)
    root = np.maximum(squares, np.finfo(np.float32).tiny) ** 0.25  # of σ
    left, right = (left / root).astype(np.float32), (root[:, None] * right).astype(np.float32)
    lost = whole - float(kept[-1])  # of a projection; where little is left, that would be rounding
    if lost < CLEAR * whole:
        lost = _lost(apart.matrix, left, right)
    up, down = (right.T, left.T) if weight.turned else (left, right)
    found = Module(
        weight.target, weight.shape, whole, lost, noise.energy, noise.above(squares), squares, up, down
    )
    if share is None:
        return found
    enough = int(np.searchsorted(kept, share * whole * (1 - 1e-9))) + 1
    return found.cut(min(enough, width))


def _lost(matrix: Array, left: Array, right: Array) -> float:
    """‖matrix − left @ right‖², some rows at a time."""
    total = 0.0
    for top in range(0, len(matrix), ROWS):
        total += energy(matrix[top : top + ROWS] - left[top : top + ROWS] @ right)
    return total


def _apart(one: Tensor, other: Tensor) -> tuple[float, float]:
    """‖one − other‖² of two tensors of one shape, and what rounding explains of it.

    (1, 0) for those that are no floats and differ.
    """
    first, second = np.atleast_1d(one.read()), np.atleast_1d(other.read())
    if first.dtype == second.dtype and np.array_equal(first.view(np.uint8), second.view(np.uint8)):
        return 0.0, 0.0
    if not {one.dtype, other.dtype} <= dtypes.FLOATS.keys() | quantisation.FLOAT8.keys():
        return float(not np.array_equal(first, second)), 0.0
    apart = noise = 0.0
    for top in range(0, len(first), ROWS):
        rows = [dtypes.wide(each[top : top + ROWS]).reshape(1, -1) for each in (first, second)]
        apart += float(np.square(rows[0] - rows[1]).sum())
        noise += rounding(np.maximum(*map(np.abs, rows)), one.dtype, other.dtype).energy
    return apart, 2 * noise
