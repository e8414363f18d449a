"""How much of the machine a merge may use."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from loramerge.errors import UsageError

MEMORY = 10**9  # bytes, if nothing else is said
MOST = 256  # workers; more would only wait for each other


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of the machine a merge may use; the result does not depend on it.

    Args:
        threads: workers; by default one per core, up to 8.   memory: bytes for all of them.
        device: where the arrays live: ``cpu``, so far.

    >>> Effort(device="cuda")
    Traceback (most recent call last):
        ...
    loramerge.errors.UsageError: device='cuda': this version of loramerge uses no GPU, only "cpu".
    """

    threads: int | None = None
    memory: float = MEMORY
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads={self.threads} must be at least 1.")
        if not self.memory > 0:
            raise UsageError(f"memory={self.memory} must be a number of bytes above 0.")
        if self.device != "cpu":
            raise UsageError(f'device={self.device!r}: this version of loramerge uses no GPU, only "cpu".')

    @property
    def workers(self) -> int:
        return min(self.threads or min(os.cpu_count() or 1, 8), MOST)

    @property
    def share(self) -> float:
        """Bytes for one worker."""
        return self.memory / self.workers

    def holding(self, most: float) -> Effort:
        """With no more workers than can each hold so many bytes."""
        return replace(self, threads=int(max(1, min(self.workers, self.memory // most)))) if most else self


EFFORT: Effort = Effort()
