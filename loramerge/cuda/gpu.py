"""The GPU that a merge runs on: found, tried, and filled with factors as they are stored."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from loramerge.arrays.backend import Array, cupy
from loramerge.cuda.widen import widened
from loramerge.errors import UsageError, say

# Units of a module from which `auto` sends it to the GPU. By arithmetic, not measured on one: 32 units of a
# 4096² take a core about 2 ms, launches and transfer of a module about 0.1 ms; of 8 units both take as long.
WORTH = 32
NAME = re.compile(r"cuda(?::(\d{1,3}))?")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of this machine.

    Args:
        number: as CUDA counts them.   least: units of a module, below which it stays on the host.
    """

    number: int = 0
    least: int = 0

    def widened(self, parts: Sequence[Array], axis: int) -> Array:
        """Stored factors side by side in float64 on this GPU, sent as they are stored.

        The GPU stays the current one of the calling thread, which is a worker's.
        """
        cupy().cuda.Device(self.number).use()
        return widened(parts, axis)

    @contextmanager
    def within(self, memory: float) -> Iterator[None]:
        """Work that runs out of the GPU's memory ends in a sentence."""
        try:
            yield
        except cupy().cuda.memory.OutOfMemoryError as error:
            raise UsageError(
                f"The GPU cuda:{self.number} ran out of memory; the merge may use {memory:.3g} bytes of it. "
                f"Give a smaller {say('memory')}, fewer {say('threads')}, or {say('device', 'cpu')}."
            ) from error


def find(device: str) -> Gpu | None:
    """The GPU of that name; None for ``cpu``, and for ``auto`` where no GPU answers.

    Raises:
        UsageError: no such device, or it does not answer; the sentence says why.

    >>> find("cpu") is None
    True
    """
    if device == "cpu":
        return None
    if device == "auto":
        return Gpu(least=WORTH) if silent(0) is None else None
    match = NAME.fullmatch(device)
    if match is None:
        raise UsageError(f"{say('device', device)} is not one of auto, cpu, cuda, cuda:0, cuda:1 …")
    number = int(match[1] or 0)
    if (why := silent(number)) is not None:
        raise UsageError(f"{say('device', device)}: {why}")
    return Gpu(number)


def silent(number: int) -> str | None:
    """Why this GPU cannot be used; None if a small kernel really ran there. A device count proves nothing."""
    try:
        known = cupy()
    except ImportError:
        return (
            "CuPy is not installed. Install loramerge with the extra cuda13 or cuda12, whichever your driver "
            f"supports (nvidia-smi tells), or give {say('device', 'cpu')}."
        )
    try:
        with known.cuda.Device(number):
            if float((known.arange(3) + 1).sum()) == 6.0:
                return None
        return "the GPU computes wrongly (1 + 2 + 3 was not 6)."
    except Exception as error:  # no driver, no device, no toolkit: CuPy raises something else for each
        first = str(error).partition("\n")[0][:200]
        return f"no such GPU answers ({type(error).__name__}: {first}). Give {say('device', 'cpu')}."


def available() -> bool:
    """Whether CuPy is installed and one small kernel really runs.

    >>> available() in (True, False)
    True
    """
    return silent(0) is None
