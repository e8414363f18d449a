"""The base model, for adapters whose form needs it: sizes from its headers, weights when something asks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from loramerge.adapters.adapter import Adapter, Computed, Held, Slot, Tensor
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.checkpoints.checkpoint import Checkpoint, Key
from loramerge.checkpoints.modules import is_conv1d
from loramerge.checkpoints.open import open_headers
from loramerge.checkpoints.places import Places
from loramerge.checkpoints.quantised import check_readable, numbers
from loramerge.formats.forms.form import Base, Layer

NOTHING = Slot(Held(np.empty((0, 0))), Held(np.empty((0, 0))), 1.0)  # what is adapted is not known yet


class Known(Base):
    """A checkpoint, whose layers are found by the names that an adapter has for them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.name, self.checkpoint = checkpoint.name, checkpoint

    def layers(self, paths: Collection[str]) -> Mapping[str, Layer]:
        return Layers(self.checkpoint, paths)


class Layers(Mapping[str, Layer]):
    """The layers of some modules; nothing is looked up before one of them is asked for."""

    def __init__(self, checkpoint: Checkpoint, paths: Collection[str]) -> None:
        self.checkpoint, self.paths = checkpoint, paths

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
        if there is None or there[1] or len(shape := tensors[there[0]].shape) != 2:
            return None
        key, _, turned = there
        turned = turned or is_conv1d(self.checkpoint, key[0], key[1].rpartition(".")[0])
        size = (shape[1], shape[0]) if turned else (shape[0], shape[1])
        bias = places.tensor("model", path, "bias")
        return Layer(size, self._matrix(key, turned), self._matrix(bias[0], False) if bias else None)

    def _matrix(self, key: Key, turned: bool) -> Tensor:
        """A weight as (out, in), or a bias, read when it is asked for."""
        tensors = self.checkpoint.tensors
        shape = tensors[key].shape

        def read() -> Array:
            array = numbers(tensors, key)
            return np.ascontiguousarray(array.T) if turned else array

        kind = "F64" if tensors[key].dtype not in ("F32", "BF16", "F16") else tensors[key].dtype
        return Computed(shape[::-1] if turned else shape, read, kind)

    def __getitem__(self, path: str) -> Layer:
        return self.found[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)


def open_base(base: str | Path | Base) -> Base:
    """A model by its path or its name on the Hub, of which only headers are read now.

    Raises:
        SourceError, IncompatibleError: as for `open_headers`.
    """
    return base if isinstance(base, Base) else Known(open_headers(base))
