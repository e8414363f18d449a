"""The factors of some modules on a GPU as they are stored: read and sent while others are computed.

    file → pinned buffer → GPU, as stored → float64 where a GEMM wants it

The way to the GPU has two pinned buffers: one is filled from the files while the other is on the bus. And a
batch
starts the one after it, in a thread of its own: so files are read and sent while this batch is computed, with
one worker too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from loramerge.arrays.backend import Array, cupy, finish, use
from loramerge.arrays.workers import beside, go_on
from loramerge.cuda.widen import launch, sendable

Parts = tuple[Sequence[Array], Sequence[Array]]  # up (out, r) and down (r, in) of each source, as stored
Sides = tuple[list[tuple[Array, int]], list[tuple[Array, int]]]  # (m, out, r), (m, r, in) bits and their kind


class Place(NamedTuple):
    """Where a module lies: in a group of modules that are alike, at a position."""

    group: int
    at: int


class Batch:
    """Some modules on a GPU.

    Args:
        number: of the GPU.
        likes: (M,) modules with equal values have equal shapes and types, source by source.
        read: the stored factors of one module.
        after: the batch that is read and sent while this one is computed.
    """

    def __init__(self, number: int, likes: Sequence[Hashable], read: Callable[[int], Parts]) -> None:
        self._number, self._read = number, read
        self.after: Batch | None = None
        self.groups: list[list[int]] = []
        self._places: list[Place] = []
        known: dict[Hashable, int] = {}
        for module, like in enumerate(likes):
            group = known.setdefault(like, len(known))
            if group == len(self.groups):
                self.groups.append([])
            self._places.append(Place(group, len(self.groups[group])))
            self.groups[group].append(module)
        self._lock, self._dropped = threading.Lock(), False
        self._result: Callable[[], list[Sides]] | None = None
        self._products: tuple[Array, list[Array], list[Array]] | None = None  # of the last P

    def start(self) -> None:
        """Begin to read and to send, if that has not begun."""
        with self._lock:
            if self._result is None and not self._dropped:
                self._result = beside(lambda: self._sent(self.groups))

    def grams(self) -> tuple[Array, Array]:
        """upᵀ up and down downᵀ (M, R, R) in float64: one strided-batched product for each side and shape."""
        use(self._number)
        self.start()
        sides = self._held()
        if self.after is not None:
            self.after.start()
        made = [(self._gram(side, 0), self._gram(side, 1)) for side in sides]
        up, down = (self._ordered([pair[n] for pair in made]) for n in (0, 1))
        finish()  # the stacks came from memory of this thread, what was sent did not: see `drop`
        return up, down

    def factor(self, module: int, axis: int) -> Array:
        """up (out, R), axis 0, or down (R, in), axis 1, of one module in float64."""
        use(self._number)
        group, at = self._places[module]
        if self._dropped or self._result is None:
            alone = self._sent([[module]])
            made = stacked(alone[0][axis], axis)[0]
            finish()
            return made
        side = [(bits[at : at + 1], kind) for bits, kind in self._held()[group][axis]]
        return stacked(side, axis)[0]

    def mixed(self, P: Array, Q: Array, module: int) -> tuple[Array, Array]:
        """up @ P (out, k) and Q @ down (k, in) of one module.

        When the first is asked for, those of all modules are made: a product for each side and shape.

        Args:
            P: (M, R, k) and Q: (M, k, R), of all modules.
        """
        use(self._number)
        if self._products is None or self._products[0] is not P:
            each = [
                (np.array(modules), side) for modules, side in zip(self.groups, self._held(), strict=True)
            ]
            ups = [stacked(side[0], 0) @ P[modules] for modules, side in each]
            self._products = P, ups, [Q[modules] @ stacked(side[1], 1) for modules, side in each]
        (group, at), (_, ups, downs) = self._places[module], self._products
        return ups[group][at], downs[group][at]

    def alike(self) -> Iterator[tuple[Array, Callable[[int], Array]]]:
        """Modules (m,) of one shape, and how to come by up (m, out, R), of axis 0, or down (m, R, in)."""
        use(self._number)
        for modules, sides in zip(self.groups, self._held(), strict=True):
            yield np.array(modules), partial(_side, sides)

    def drop(self) -> None:
        """Forget what was sent; who asks for a factor after this reads it again.

        What was sent is memory of the thread that sent it. It may only be used anew when no product reads it.
        """
        finish()
        with self._lock:
            self._dropped, self._result, self._products = True, None, None

    def _held(self) -> list[Sides]:
        result = self._result
        return self._sent(self.groups) if result is None else result()

    def _sent(self, groups: Sequence[Sequence[int]]) -> list[Sides]:
        """The stored factors of groups of modules on the GPU, complete."""
        use(self._number)
        staging = Staging()
        found = [self._group(modules, staging) for modules in groups]
        staging.wait()
        finish()
        return found

    def _group(self, modules: Sequence[int], staging: Staging) -> Sides:
        rooms: Sides = ([], [])
        for at, module in enumerate(modules):
            go_on()
            read = [[sendable(part) for part in side] for side in self._read(module)]
            if not at:
                for room, side in zip(rooms, read, strict=True):
                    room += [(cupy().empty((len(modules), *b.shape), b.dtype), kind) for b, kind in side]
            places = [bits[at] for room in rooms for bits, _ in room]
            staging.send([bits for side in read for bits, _ in side], places)
        return rooms

    def _gram(self, sides: Sides, axis: int) -> Array:
        stack = stacked(sides[axis], axis)
        turned = stack.swapaxes(1, 2)
        return stack @ turned if axis else turned @ stack

    def _ordered(self, made: Sequence[Array]) -> Array:
        """(M, R, R) of all groups in the order of the modules."""
        if len(made) == 1:
            return made[0]
        out = cupy().empty((len(self._places), *made[0].shape[1:]), np.float64)
        for modules, each in zip(self.groups, made, strict=True):
            out[np.array(modules)] = each
        return out


def _side(sides: Sides, axis: int) -> Array:
    return stacked(sides[axis], axis)


def stacked(side: Sequence[tuple[Array, int]], axis: int) -> Array:
    """Factors of m modules in float64: sources side by side (m, out, R), or on top of each other (m, R, in).

    Args:
        side: of each source its bits (m, out, r) or (m, r, in), and their kind.
    """
    count, first, second = side[0][0].shape
    units = sum(bits.shape[2 - axis] for bits, _ in side)
    shape = (count, units, second) if axis else (count, first, units)
    out = cupy().empty(shape, np.float64)
    # a row of the kernel is a row of `up`, or all rows that a source has in `down`
    rows = count if axis else count * first
    flat, start = out.reshape(rows, out.size // rows), 0
    for bits, kind in side:
        bits = bits.reshape(rows, bits.size // rows)
        launch(bits, flat[:, start : start + bits.shape[1]], kind)
        start += bits.shape[1]
    return out


class Staging:
    """Two pinned buffers: one is filled while the other is on the bus."""

    def __init__(self) -> None:
        self._slots: list[tuple[Any, Any] | None] = [None, None]  # memory, and when it has been read
        self._turn = 0

    def send(self, parts: Sequence[Array], places: Sequence[Any]) -> None:
        """Copy arrays of the host to places of their shapes and types on the GPU."""
        known, size = cupy(), sum(part.nbytes + -part.nbytes % 16 for part in parts)
        memory = self._room(size)
        start = 0
        for part, place in zip(parts, places, strict=True):
            if part.shape != place.shape or part.dtype != place.dtype:
                raise ValueError(f"{part.dtype}{part.shape} does not fit {place.dtype}{place.shape}.")
            view = np.frombuffer(memory, part.dtype, part.size, start).reshape(part.shape)
            view[...] = part
            place.set(view, stream=known.cuda.get_current_stream())
            start += part.nbytes + -part.nbytes % 16
        event = known.cuda.Event(disable_timing=True)
        event.record()
        self._slots[self._turn] = memory, event
        self._turn ^= 1

    def _room(self, size: int) -> Any:
        """The buffer whose turn it is, free again and large enough."""
        slot = self._slots[self._turn]
        if slot is not None:
            slot[1].synchronize()
            if slot[0].size() >= size:
                return slot[0]
        return cupy().cuda.alloc_pinned_memory(max(size, 1))

    def wait(self) -> None:
        """Until all that was sent has arrived."""
        for slot in self._slots:
            if slot is not None:
                slot[1].synchronize()
