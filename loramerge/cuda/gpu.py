"""The GPU that a merge runs on: found, tried, and bounded in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from loramerge.arrays.backend import cupy, use
from loramerge.cuda.batch import Batch, Parts
from loramerge.cuda.worth import least_units
from loramerge.errors import UsageError, say

NAME = re.compile(r"cuda(?::(\d{1,3}))?")
LARGEST = 2  # the eigenproblem of an SVD has twice the rows of its matrix
COUNTED = 2**31  # what an int holds
PADDED = 32  # rows to which cuSOLVER rounds up small matrices in its workspace


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of this machine.

    Args:
        number: as CUDA counts them.   least: units of a module, below which it stays on the host.
    """

    number: int = 0
    least: int = 0

    def batch(self, likes: Sequence[Hashable], read: Callable[[int], Parts]) -> Batch:
        """Modules that will be sent there; see `Batch`."""
        return Batch(self.number, likes, read)

    def use(self) -> None:
        """Make it the current one of the calling thread, which is a worker's."""
        use(self.number)

    def workspace(self, units: int) -> int:
        """Bytes that cuSOLVER takes for a module of a batch, beside matrices and vectors.

        cuSOLVER is asked. Where its question cannot be put, it is `workspace_by_rule`.
        """
        return max(workspace_by_rule(units), _asked(self.number, LARGEST * units))

    def most(self, units: int) -> int:
        """Modules of a batch: cuSOLVER counts the numbers of its workspace in 32 bits.

        More modules at once would overflow it, with no error.
        """
        return max(1, (COUNTED - 1) // (self.workspace(units) // 8))

    @contextmanager
    def within(self, memory: float) -> Iterator[None]:
        """Work on this GPU: a sentence if its memory runs out; what lies idle above the bound is freed."""
        known = cupy()
        try:
            with known.cuda.Device(self.number):
                yield
        except known.cuda.memory.OutOfMemoryError as error:
            raise UsageError(
                f"The GPU cuda:{self.number} ran out of memory; the merge may use {memory:.3g} bytes of it. "
                f"Give a smaller {say('memory')}, fewer {say('threads')}, or {say('device', 'cpu')}."
            ) from error
        finally:
            # each thread has a part of the pool of its own, which no other uses, also after the thread has
            # ended
            if (pool := known.get_default_memory_pool()).total_bytes() > memory:
                pool.free_all_blocks()
                known.get_default_pinned_memory_pool().free_all_blocks()


def workspace_by_rule(units: int) -> int:
    """Two more matrices for each eigenproblem: what is planned with before a GPU is there to be asked.

    Of complex 4×4 matrices cuSOLVER was seen to take 1049 numbers each: one matrix of 32×32.

    >>> workspace_by_rule(128) == 2 * 8 * 256**2
    True
    """
    rows = -(-LARGEST * units // PADDED) * PADDED
    return 2 * 8 * rows**2


def _asked(number: int, rows: int, count: int = 64) -> int:
    """Bytes for each of some eigenproblems, by cuSOLVER's own answer; 0 if it gives none."""
    known = cupy()
    try:
        cublas, cusolver = (
            import_module(f"cupy_backends.cuda.libs.{name}") for name in ("cublas", "cusolver")
        )
    except ImportError:
        return 0
    with known.cuda.Device(number) as device:
        some, values = known.empty((1,), "float64"), known.empty((1,), "float64")  # only sizes are looked at
        info: Any = cusolver.createSyevjInfo()
        try:
            numbers = cusolver.dsyevjBatched_bufferSize(
                device.cusolver_handle,
                cusolver.CUSOLVER_EIG_MODE_VECTOR,
                cublas.CUBLAS_FILL_MODE_LOWER,
                rows,
                some.data.ptr,
                rows,
                values.data.ptr,
                info,
                count,
            )
        finally:
            cusolver.destroySyevjInfo(info)
    return int(-(-8 * numbers // count))


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
        return Gpu(least=least_units(0)) if silent(0) is None else None
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
