"""Where arrays live: NumPy on the host, CuPy on a GPU, and what the two do differently.

Batched code takes its functions from its arrays, ``xp = namespace(a)``, and leaves the arrays where they are.
Crossings are explicit: `host` copies down, `like` moves up. Small arrays that only select (owners, weights,
positions) are always on the host; CuPy accepts them as indices.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import Any

import numpy as np

Array = np.ndarray[tuple[Any, ...], np.dtype[Any]]  # NDArray[Any], whose module takes a while to load


def namespace(array: Any) -> Any:
    """The module whose functions work on this array: ``numpy``, or that of the device it lives on.

    >>> namespace(np.zeros(2)).__name__
    'numpy'
    """
    if isinstance(array, np.ndarray | np.generic):
        return np
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    return sys.modules["cupy"] if on_gpu(array) else np  # arrays of CuPy 14 do not say it themselves


def on_gpu(array: Any) -> bool:
    """Whether it is an array of CuPy."""
    known = sys.modules.get("cupy")
    return known is not None and isinstance(array, known.ndarray)


def cupy() -> Any:
    """CuPy, imported when first asked for, and here alone.

    Every thread of the host gets a stream of its own, so that one reads and sends while another computes.
    Where CuPy was imported before, that is left as it is: the same result, with less overlap.
    """
    os.environ.setdefault("CUPY_CUDA_PER_THREAD_DEFAULT_STREAM", "1")
    import cupy

    return cupy


_thread = threading.local()


def use(number: int) -> None:
    """Make this GPU the current one of the thread."""
    cupy().cuda.Device(number).use()
    _thread.number = number


def finish() -> None:
    """Wait until the GPU has done what this thread asked of it, if it asked for anything.

    Every thread has a stream of its own, and streams do not wait for each other. So whoever gives arrays to
    another thread, or lets go of memory that another thread took, calls this first.
    """
    if getattr(_thread, "number", None) is not None:
        cupy().cuda.get_current_stream().synchronize()


def host(array: Any) -> Array:
    """The same numbers on the host, for a step that cannot be taken on a device; the caller says why."""
    return array if namespace(array) is np else array.get()


def to_torch(array: Any) -> Any:
    """A torch tensor of the same memory, by DLPack: on the same GPU, or on the host.

    An array that may not be written is copied, because a tensor may.

    >>> import pytest; torch = pytest.importorskip("torch")
    >>> to_torch(np.arange(3.0))
    tensor([0., 1., 2.], dtype=torch.float64)
    """
    import torch
    from torch.utils.dlpack import from_dlpack

    if not on_gpu(array):
        array = np.require(array, requirements="W")
    if array.dtype.kind != "V":
        return from_dlpack(array)
    return from_dlpack(array.view(_bits(array.dtype.itemsize))).view(getattr(torch, array.dtype.name))


def from_torch(tensor: Any) -> Any:
    """The memory of a torch tensor as an array of NumPy, or of CuPy where it lies on a GPU; by DLPack.

    bfloat16 and the types of 8 bits are those of `ml_dtypes`; on a GPU they come as bits, CuPy has no others.

    >>> import pytest; torch = pytest.importorskip("torch")
    >>> from_torch(torch.ones(2, dtype=torch.bfloat16))
    array([1, 1], dtype=bfloat16)
    """
    import torch

    tensor = tensor.detach()
    xp = cupy() if tensor.is_cuda else np
    name = str(tensor.dtype).removeprefix("torch.")
    if not name.startswith(("bfloat16", "float8")):
        return xp.from_dlpack(tensor)
    bits = xp.from_dlpack(tensor.view(getattr(torch, _bits(tensor.itemsize))))
    if tensor.is_cuda:
        return bits
    import ml_dtypes

    return bits.view(getattr(ml_dtypes, name))


def _bits(size: int) -> str:
    """The whole numbers by which DLPack passes a type that it has no name for."""
    return {1: "uint8", 2: "int16"}[size]


def like(values: Any, array: Any) -> Array:
    """The same numbers where `array` lives."""
    return namespace(array).asarray(values)


def positions(mask: Any) -> list[int]:
    """Where a mask (N,) holds, as numbers that Python can loop over.

    >>> positions(np.array([True, False, True]))
    [0, 2]
    """
    return np.flatnonzero(host(mask)).tolist()


def ratio(part: Any, whole: Any, where: Any) -> Array:
    """part / whole where `where` holds, elsewhere 0. CuPy's functions have no ``where=``.

    >>> ratio(np.array([1.0, 2.0]), np.array([4.0, 0.0]), np.array([True, False]))
    array([0.25, 0.  ])
    """
    xp = namespace(whole)
    return xp.where(where, part / xp.where(where, whole, 1.0), 0.0)


def keep_freed_memory() -> None:
    """Let this process reuse the memory of large arrays instead of returning it to the system each time.

    With glibc's defaults the page faults of fresh arrays took a third of a merge. For the command line, whose
    process is ours; elsewhere than on glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    trim_threshold, mmap_threshold = -1, -3  # names of mallopt's parameters, from malloc.h
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(trim_threshold, 1 << 29)
        libc.mallopt(mmap_threshold, 1 << 25)
