"""The base model, for adapters whose form needs it: sizes from its headers, weights when something asks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np

from loramerge.adapters.adapter import Adapter, Computed, Held, Slot, Tensor
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.checkpoints.checkpoint import Checkpoint, Key
from loramerge.checkpoints.modules import is_conv1d
from loramerge.checkpoints.open import open_headers
from loramerge.checkpoints.places import Place, Places, home
from loramerge.checkpoints.quantisation import check_readable, numbers
from loramerge.errors import IncompatibleError, printable
from loramerge.formats.forms.form import Base, Layer

NOTHING = Slot(Held(np.empty((0, 0))), Held(np.empty((0, 0))), 1.0)  # what is adapted is not known yet


class Known(Base):
    """A checkpoint, whose layers are found by the names that an adapter has for them.

    Args:
        changed: the adapter is in its weights already, so that they are not those that it was trained on.
    """

    def __init__(self, checkpoint: Checkpoint, changed: bool = False) -> None:
        self.name, self.checkpoint, self.changed = checkpoint.name, checkpoint, changed

    def layers(self, paths: Collection[str]) -> Mapping[str, Layer]:
        return Layers(self.checkpoint, paths, self.changed)

    def weights(self, sizes: Mapping[Target, tuple[int, int]]) -> Mapping[Target, Tensor]:
        check_readable(self.checkpoint)
        made = home(self.checkpoint, Adapter("the adapter", _marked(sizes)))
        places, pieces = Places(self.checkpoint, made), dict[int, list[Piece]]()
        for target, slot in made.slots.items():
            up = slot.up.read().astype(np.int64)  # (rows, 2)
            for place in places.of(target):
                own = up if place.outs is None else up[place.outs]
                pieces.setdefault(int(up[0, 0]), []).append((own[:, 1], place))
        tensors = self.checkpoint.tensors
        found = {t: _joined(tensors, pieces[i], size) for i, (t, size) in enumerate(sizes.items())}
        return {t: _gone(self.name, each) for t, each in found.items()} if self.changed else found


Piece = tuple[Array, Place]  # rows of a matrix, and where in a model they lie


def _marked(sizes: Mapping[Target, tuple[int, int]]) -> dict[Target, Slot]:
    """Slots whose `up` says which module and row it is, so that it is known where these went."""
    return {
        target: Slot(
            Held(np.stack([np.full(outs, i, np.float64), np.arange(outs, dtype=np.float64)], axis=1)),
            Held(np.zeros((2, ins))),
            1.0,
        )
        for i, (target, (outs, ins)) in enumerate(sizes.items())
    }


def _gone(name: str, weight: Tensor) -> Tensor:
    """A weight of which only the size is known, as an adapter has changed it since."""

    def read() -> Array:
        raise IncompatibleError(
            f"What the adapter adds depends on the weights that {printable(name)} had before, so it cannot "
            "be taken out again: keep the model without it."
        )

    return Computed(weight.shape, read, weight.dtype)


def _joined(tensors: Mapping[Key, Tensor], pieces: Sequence[Piece], size: tuple[int, int]) -> Tensor:
    """A weight of pieces that lie in several tensors, read when it is asked for."""

    def read() -> Array:
        whole = np.zeros(size)
        for own, place in pieces:
            array = numbers(tensors, place.key)
            array = array[place.index] if place.index >= 0 else array
            flat = array.reshape(len(array), -1)
            flat = np.concatenate([flat[rows] for rows in place.rows]) if place.rows else flat
            whole[own] = flat.T if place.turned else flat
        return whole

    return Computed(size, read, held=3 * 8 * prod(size))  # a piece as it is stored, turned and in float64


class Layers(Mapping[str, Layer]):
    """The layers of some modules; nothing is looked up before one of them is asked for."""

    def __init__(self, checkpoint: Checkpoint, paths: Collection[str], changed: bool) -> None:
        self.checkpoint, self.paths, self.changed = checkpoint, paths, changed

    @cached_property
    def found(self) -> dict[str, Layer]:
        """Module -> layer."""
        check_readable(self.checkpoint)
        if not self.paths or ("model" not in self.checkpoint.models and len(self.checkpoint.models) > 1):
            return {}
        alone = Adapter("the adapter", {Target(path): NOTHING for path in self.paths})
        places = Places(self.checkpoint, alone)
        layers = {path: self._layer(places, path) for path in self.paths}
        return {path: layer for path, layer in layers.items() if layer is not None}

    def _layer(self, places: Places, path: str) -> Layer | None:
        tensors, there = self.checkpoint.tensors, places.tensor("model", path, "weight")
        if there is None or there[1] or not 2 <= len(shape := tensors[there[0]].shape) <= 5:
            return None
        key, _, turned = there
        turned = turned or is_conv1d(self.checkpoint, key[0], key[1].rpartition(".")[0])
        outs, ins = shape[0], prod(shape[1:])
        bias = places.tensor("model", path, "bias")
        return Layer(
            (ins, outs) if turned else (outs, ins),
            self._matrix(key, turned),
            self._matrix(bias[0], False) if bias else None,
            shape[2:],
        )

    def _matrix(self, key: Key, turned: bool) -> Tensor:
        """A weight as a matrix, or a bias, read when it is asked for."""
        tensors = self.checkpoint.tensors
        shape = tensors[key].shape
        shape = shape if len(shape) < 2 else (shape[0], prod(shape[1:]))

        def read() -> Array:
            array = numbers(tensors, key).reshape(shape)
            return np.ascontiguousarray(array.T) if turned else array

        kind = "F64" if tensors[key].dtype not in ("F32", "BF16", "F16") else tensors[key].dtype
        found = Computed(shape[::-1] if turned else shape, read, kind, 2 * 8 * prod(shape))
        return _gone(self.checkpoint.name, found) if self.changed else found

    def __getitem__(self, path: str) -> Layer:
        return self.found[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)


def open_base(base: str | Path | Base) -> Base:
    """A model by its path or its name on the Hub; only its headers are read now.

    Raises:
        SourceError, IncompatibleError: as for `open_headers`.
    """
    return base if isinstance(base, Base) else Known(open_headers(base))
