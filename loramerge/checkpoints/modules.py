"""The weights of a model that can have a low-rank update, and all other tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.adapters.target import Kind, Target
from loramerge.arrays.backend import Array
from loramerge.checkpoints import kinds, quantisation, single
from loramerge.checkpoints.checkpoint import Checkpoint, Key
from loramerge.formats.files.safetensors import TensorRef


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix in a tensor of a model.

    Args:
        key: of the tensor.   target: the update that belongs to it.   shape: (out, in).
        rows: of the tensor, if it holds several modules.   turned: it is stored as (in, out).
    """

    key: Key
    target: Target
    shape: tuple[int, int]
    rows: tuple[slice, ...] = ()
    turned: bool = False

    def rows_of(self, tensors: Mapping[Key, Tensor]) -> Callable[[int, int], Array]:
        """What reads rows of it, from one to another, as they are stored: (in, ·) if it is turned.

        Raises:
            IncompatibleError: it is stored as no float, or with scales of a shape that is not known.
        """
        tensor, (count, wide) = tensors[self.key], self.stored
        quantisation.check_float(tensors, self.key)
        if isinstance(tensor, TensorRef) and not self.rows and not quantisation.scale_of(tensors, self.key):
            first = self._expert * count
            return lambda top, stop: tensor.part((first + top) * wide, (stop - top, wide))
        array = quantisation.numbers(tensors, self.key)
        flat = (array[self._expert] if self.target.kind == "expert" else array).reshape(-1, wide)
        if self.rows:
            flat = np.concatenate([flat[rows] for rows in self.rows])
        return lambda top, stop: flat[top:stop]

    @property
    def stored(self) -> tuple[int, int]:
        """The shape in which it is stored: (out, in), or (in, out) if it is turned."""
        return (self.shape[1], self.shape[0]) if self.turned else self.shape

    @property
    def _expert(self) -> int:
        return max(self.target.index, 0) if self.target.kind == "expert" else 0


def weights(checkpoint: Checkpoint) -> Iterator[Weight]:
    """Every weight that can have a low-rank update: each tensor once, whole where it is one module.

    Experts in one tensor are one weight each. Embeddings are weights too, of kind `embedding`.
    """
    names = [key for _, key in checkpoint.tensors]
    image = checkpoint.bare and single.is_image(names)
    for key, tensor in checkpoint.tensors.items():
        found = _of_image(key, tensor.shape) if image else _named(checkpoint, key, tensor.shape)
        yield from found


def _named(checkpoint: Checkpoint, key: Key, shape: tuple[int, ...]) -> Iterator[Weight]:
    part, name = key
    path, _, parameter = name.rpartition(".")
    if (kind := kinds.kind(path, parameter, shape)) is None or kinds.is_router(path):
        return
    component = "model" if part == "file" else part
    turned = kind == "embedding" or (kind == "expert" and kinds.are_experts_turned(checkpoint.config(part)))
    if kind == "linear" and path.rpartition(".")[2] in kinds.CONV1D_NAMES:
        turned = is_conv1d(checkpoint, part, path)
    size = kinds.size(kind, shape, turned)
    layout = kinds.layout(kind, shape, turned)
    for index in range(shape[0]) if kind == "expert" else (-1,):
        target = Target(path, parameter, component, index, kind, layout)
        yield Weight(key, target, size, turned=turned)


def is_conv1d(checkpoint: Checkpoint, part: str, path: str) -> bool:
    """Whether a linear layer of a component is stored as (in, out)."""
    shapes = {key: tensor.shape for (where, key), tensor in checkpoint.tensors.items() if where == part}
    return kinds.is_conv1d(path, checkpoint.config(part), shapes)


def _of_image(key: Key, shape: tuple[int, ...]) -> Iterator[Weight]:
    """Of a file under first names: whole tensors, but the parts of what OpenCLIP keeps together."""
    parts = single.parts(key[1], shape)
    for part in parts[:1] if len(parts) > 1 and not parts[0].rows else parts:
        kind = kinds.kind(part.path, part.parameter, shape)
        if kind is None:
            continue
        turned = part.turned or kind == "embedding"
        outs = sum(rows.stop - rows.start for rows in part.rows) or shape[0]
        size = kinds.size(kind, (outs, *shape[1:]), turned)
        layout = kinds.layout(kind, shape, False)
        target = Target(part.path, part.parameter, part.component, kind=kind, layout=layout)
        yield Weight(key, target, size, part.rows, turned)


def of_kinds(found: Iterator[Weight], wanted: tuple[Kind, ...]) -> list[Weight]:
    """Those of these kinds."""
    return [weight for weight in found if weight.target.kind in wanted]
