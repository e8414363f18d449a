"""Modules put together to be merged at once: as many as fit into the memory that one worker may take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from loramerge.adapters.adapter import Adapter, Slot
from loramerge.adapters.target import Target
from loramerge.algorithms import Method
from loramerge.arrays.dtypes import FLOATS
from loramerge.arrays.gram import Signature
from loramerge.formats.output import Outline
from loramerge.request.effort import MEMORY
from loramerge.sources.units import Units

if TYPE_CHECKING:
    from loramerge.cuda import Gpu

BATCH = 16  # modules that hide Python's own time where units are many
NUMBERS = 1 << 17  # in one (M, R, R): few units make larger batches, as far as they stay in cache
PIECES = 4  # of the modules on a GPU, which likes large batches: one is computed while the next is read
SQUARES = 24  # (R, R) float64 arrays alive at once while a module is merged, if no method says otherwise


class Asked(NamedTuple):
    """What a module takes beside the numbers that a method states.

    Args:
        times: of what factors of float32 take.   computed: bytes while one factor is read.
        written: bytes of it as it is stored, and of what is written with it.
    """

    times: int = 1
    computed: int = 0
    written: int = 0


PLAIN = Asked()


def batches(
    adapters: Sequence[Adapter],
    signatures: Mapping[Target, Signature],
    memory: float = MEMORY,
    workers: int = 1,
    gpu: Gpu | None = None,
    method: Method | None = None,
    outline: Outline | None = None,
) -> Iterator[Units]:
    """The modules in batches of one rank signature, each small enough to be merged by `method` within
    `memory` bytes, to be written as the outline has it, and to leave some for every one of the `workers`.

    Those that share a pair of tensors are never in one batch with others: the tensors wait for all of them.
    """
    groups: dict[tuple[str, Signature], list[Target]] = defaultdict(list)
    for target, signature in signatures.items():
        groups[_stack(target), signature].append(target)
    for (_, signature), targets in groups.items():
        place = gpu if gpu and sum(signature) >= gpu.least else None
        pieces = 2 * workers if place is None else PIECES
        even = max(BATCH, len(targets) // pieces)
        slots = [a.slots[t] for t in targets for a in adapters if t in a.slots]
        more = asked(slots, targets, outline)
        count = min(_that_fit(signature, slots, more, memory, method, place), even)
        for start in range(0, len(targets), count):
            units = Units(tuple(targets[start : start + count]), tuple(adapters), signature)
            yield units if place is None else units.on(place)


def _stack(target: Target) -> str:
    """What targets that share a pair of tensors have in common; others have nothing."""
    return target.place if target.layout.blocks > 1 else ""


def stack_by_stack(batches: Sequence[Units]) -> list[Units]:
    """Those of one stack one after another: so no more stacks are open at once than there are workers."""
    first: dict[str, int] = {}
    places = [
        first.setdefault(stack, at) if (stack := _stack(batch.targets[0])) else at
        for at, batch in enumerate(batches)
    ]
    return [batches[at] for at in sorted(range(len(batches)), key=places.__getitem__)]


def ahead(units: Sequence[Units], workers: int) -> None:
    """Let each batch on a GPU have the one that its worker takes next read and sent while it is computed."""
    there = [each.gpu for each in units if each.gpu is not None]
    for batch, after in zip(there, there[workers:], strict=False):
        batch.after = after


def _that_fit(
    signature: Signature,
    slots: list[Slot],
    more: Asked,
    memory: float,
    method: Method | None,
    gpu: Gpu | None,
) -> int:
    """Modules a batch: what all of them take, and what the largest takes by itself, must fit."""
    shape = _largest([slot.shape for slot in slots])
    apart, each = needs(signature, shape, method, more)
    if gpu is not None:
        width = max(_width(slot) for slot in slots)
        each += gpu.workspace(sum(signature)) + there(sum(signature), shape, width)
    fit = (memory - apart) / each
    cached = max(BATCH, NUMBERS // sum(signature) ** 2) if gpu is None else gpu.most(sum(signature))
    return int(min(max(fit, 1), cached))


def _width(slot: Slot) -> int:
    """Bytes of a number on its way to the GPU."""
    kinds = [FLOATS.get(side.dtype) for side in (slot.up, slot.down)]
    return max(8 if kind is None or kind.itemsize == 1 else kind.itemsize for kind in kinds)


def _largest(shapes: list[tuple[int, int]]) -> tuple[int, int]:
    return max(outs for outs, _ in shapes), max(ins for _, ins in shapes)


def asked(slots: Iterable[Slot], targets: Iterable[Target] = (), outline: Outline | None = None) -> Asked:
    """What modules take beside the numbers of their factors: of float64 twice as much as of float32, what is
    computed when it is read, and what is written."""
    sides = [side for slot in slots for side in (slot.up, slot.down)]
    times = 2 if any(side.dtype == "F64" for side in sides) else 1
    written = 0 if outline is None else max(map(outline.held, targets), default=0)
    return Asked(times, max((side.held for side in sides), default=0), written)


def needs(
    signature: Signature, shape: tuple[int, int], method: Method | None, asked: Asked = PLAIN
) -> tuple[int, int]:
    """Bytes that one module at a time takes, and those that each module of a batch takes besides."""
    units, sources = sum(signature), sum(rank > 0 for rank in signature)
    if method is None:
        apart = 2 * 8 * units * sum(shape) + asked.computed  # float64, as they are and mixed
        return apart, 8 * SQUARES * units**2
    apart = asked.times * method.needs(signature, shape) + asked.computed + asked.written
    return apart, 8 * method.squares(sources) * units**2


def there(units: int, shape: tuple[int, int], width: int) -> int:
    """Bytes of a module's factors on a GPU.

    They are those of this batch and the next as stored; one side in float64, with the turned copy that a
    strided-batched product takes; and the merged ones, of as many units at most.
    """
    return 2 * (width + 4) * units * sum(shape) + 2 * 8 * units * max(shape)
