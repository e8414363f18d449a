"""Where PEFT keeps the factors of each kind of target: names, shapes, and many blocks in one tensor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.formats.peft.experts import ORDER
from loramerge.formats.peft.names import PREFIX, WRAPPED

Shape = tuple[int, ...]


def common_rank(ranks: Mapping[Target, int]) -> int:
    """The one r that holds these ranks in every target; a grouped convolution divides its r by its groups."""
    step = int(np.lcm.reduce([_groups(target) for target in ranks]))
    most = max((rank * _groups(target) for target, rank in ranks.items()), default=1)
    return max(1, -(-most // step)) * step


def own_ranks(ranks: Mapping[Target, int]) -> dict[str, int]:
    """The r that each place needs for these ranks; what is stored in one tensor has one."""
    places: dict[str, dict[Target, int]] = defaultdict(dict)
    for target, rank in ranks.items():
        places[target.place][target] = rank
    return {place: common_rank(inside) for place, inside in places.items()}


def width(target: Target, rank: int) -> int:
    """The units that a target has where the config says r = `rank`."""
    return rank // _groups(target)


def _groups(target: Target) -> int:
    return target.layout.blocks if target.kind == "conv" else 1


class Keys:
    """The tensor names of an adapter's targets.

    >>> Keys([Target("h.0.q")]).of(Target("h.0.q"))
    ('base_model.model.h.0.q.lora_A.weight', 'base_model.model.h.0.q.lora_B.weight')
    """

    def __init__(self, targets: Iterable[Target]) -> None:
        experts: dict[str, set[str]] = defaultdict(set)
        for target in targets:
            if target.kind == "expert":
                experts[target.path].add(target.parameter)
        self._nests = {path: sorted(names, key=_place) for path, names in experts.items()}

    def of(self, target: Target) -> tuple[str, str]:
        """The names of the down and the up factor."""
        path = PREFIX + target.path
        if target.kind == "embedding":
            return f"{path}.lora_embedding_A", f"{path}.lora_embedding_B"
        if target.kind == "expert":
            nest = self._nests[target.path]
            path += WRAPPED * (len(nest) - 1 - nest.index(target.parameter))
        return f"{path}.lora_A.weight", f"{path}.lora_B.weight"


def bias_key(target: Target) -> str:
    """The name of what is added to the bias of a module."""
    return f"{PREFIX}{target.path}.lora_B.bias"


def shapes(target: Target, size: tuple[int, int], width: int) -> tuple[Shape, Shape]:
    """The shapes of the stored down and up factors, of all blocks, for an update (out, in) of one."""
    (outs, ins), kernel, blocks = size, target.layout.kernel, target.layout.blocks
    down, up = (blocks * width, ins), (outs, width)
    if target.kind == "expert":
        return down, (outs, width * blocks)
    if target.kind == "conv":
        return (*down[:1], ins // int(np.prod(kernel)), *kernel), (outs * blocks, width, *(1 for _ in kernel))
    return down, up


def laid(target: Target, up: Array, down: Array) -> tuple[Array, Array]:
    """The down and up factors of one target in the shapes in which they are stored."""
    sizes = shapes(target, (up.shape[0], down.shape[1]), down.shape[0])
    return down.reshape(sizes[0]), up.reshape(sizes[1])


def within(target: Target, down: Array, up: Array) -> tuple[Array, Array]:
    """Where one block lies in the stored factors of all: views (width, in) and (out, width)."""
    index, blocks = target.index, target.layout.blocks
    if target.kind == "expert":
        return _block(down, index, blocks), up[:, index::blocks]
    return _block(down, index, blocks), _block(up, index, blocks)


@dataclass(eq=False, repr=False)
class Shelf:
    """Factors on their way out: each tensor is handed to `done` once all blocks are there that will come.

    Others stay zero: no source has them, or they were not selected. Threads may put different targets at
    once.

    Args:
        blocks: place of the targets that share one pair of tensors -> how many of them will come.
    """

    keys: Callable[[Target], tuple[str, str]]
    done: Callable[[str, Array], None]
    blocks: Mapping[str, int]
    lay: Callable[[Target, Array, Array], tuple[Array, Array]] = laid
    shapes: Callable[[Target, tuple[int, int], int], tuple[Shape, Shape]] = shapes
    within: Callable[[Target, Array, Array], tuple[Array, Array]] = within
    _open: dict[str, Array] = field(default_factory=dict)
    _left: dict[str, int] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def put(self, target: Target, up: Array, down: Array) -> None:
        """Take the factors of one target."""
        names = self.keys(target)
        if target.layout.blocks == 1:
            for name, factor in zip(names, self.lay(target, up, down), strict=True):
                self.done(name, factor)
            return
        sizes = self.shapes(target, (up.shape[0], down.shape[1]), down.shape[0])
        with self._lock:
            self._place(target, names, sizes, up, down)

    def _place(
        self, target: Target, names: tuple[str, str], sizes: tuple[Shape, Shape], up: Array, down: Array
    ) -> None:
        for name, size, dtype in zip(names, sizes, (down.dtype, up.dtype), strict=True):
            if name not in self._open:
                self._open[name], self._left[name] = np.zeros(size, dtype), self.blocks[target.place]
        there = self.within(target, *(self._open[name] for name in names))
        for place, factor in zip(there, (down, up), strict=True):
            place[...] = factor
        for name in names:
            self._left[name] -= 1
            if not self._left[name]:
                self.done(name, self._open.pop(name))


def _block(whole: Array, index: int, blocks: int) -> Array:
    """Rows of one block, as a matrix that can be written."""
    flat = whole.reshape(whole.shape[0], -1)
    height = len(flat) // blocks
    return flat[index * height : (index + 1) * height]


def _place(parameter: str) -> int:
    return ORDER.index(parameter) if parameter in ORDER else 0
