"""How much of the machine a merge may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loramerge.charts.facts import fields_html
from loramerge.errors import UsageError, say

if TYPE_CHECKING:
    from loramerge.arrays.workers import Run
    from loramerge.cuda import Gpu

MEMORY = 10**9  # bytes, if nothing else is said
ON_GPU = 2  # workers of a GPU, if nothing else is said
MOST = 256  # workers; more would only wait for each other


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of the machine a merge may use; the result does not depend on it.

    Args:
        threads: workers; by default one per core, up to 8.   memory: bytes for all of them.
        device: where the arrays live: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``.

    >>> Effort().gpu is None
    True
    """

    threads: int | None = None
    memory: float = MEMORY
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"{say('threads', self.threads)} must be at least 1.")
        if not self.memory > 0:
            raise UsageError(f"{say('memory', self.memory)} must be a number of bytes above 0.")

    def _repr_html_(self) -> str:
        return fields_html(self)

    @property
    def gpu(self) -> Gpu | None:
        """The GPU that is meant, if one is.

        Raises:
            UsageError: there is no such device, or it does not answer.
        """
        if self.device == "cpu":
            return None
        from loramerge.cuda import find  # arrays: whoever only asks for help needs none

        return find(self.device)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While this is done, a GPU that runs out of memory says so in a sentence."""
        with nullcontext() if (gpu := self.gpu) is None else gpu.within(self.memory):
            yield

    @contextmanager
    def crew(self, tick: Callable[[], None]) -> Iterator[Run]:
        """A ``map`` over the workers of a merge, as `arrays.workers` has it; on the GPU if one is meant."""
        from loramerge.arrays.workers import workers  # arrays: whoever only asks for help needs none

        if (gpu := self.gpu) is None:
            with workers(self.workers, tick) as run:
                yield run
            return
        with gpu.within(self.memory), workers(self.workers, tick, gpu.use) as run:
            yield run

    @property
    def workers(self) -> int:
        return min(self.threads or min(os.cpu_count() or 1, 8), MOST)

    def on_gpu(self) -> Effort:
        """For work on arrays: where a GPU does it, two workers if nobody said how many.

        The GPU computes one batch at a time: the larger it is, the better. A second worker writes meanwhile.
        """
        if self.threads is not None or self.device == "cpu" or self.gpu is None:
            return self
        return replace(self, threads=min(self.workers, ON_GPU))

    @property
    def share(self) -> float:
        """Bytes for one worker."""
        return self.memory / self.workers

    def holding(self, most: float) -> Effort:
        """With no more workers than can each hold so many bytes."""
        return replace(self, threads=int(max(1, min(self.workers, self.memory // most)))) if most else self


EFFORT: Effort = Effort()
