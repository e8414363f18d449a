"""Where arrays live: NumPy on the host, CuPy on a GPU. The only module that may import cupy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Item = TypeVar("Item")
Result = TypeVar("Result")


def namespace(array: Any) -> Any:
    """The module whose functions work on this array: ``numpy``, or ``cupy`` if it came from there.

    >>> namespace(np.zeros(2)).__name__
    'numpy'
    """
    cupy = sys.modules.get("cupy")
    return cupy if cupy is not None and isinstance(array, cupy.ndarray) else np


@contextmanager
def workers(count: int) -> Iterator[Callable[[Callable[[Item], Result], Iterable[Item]], Any]]:
    """A ``map`` over `count` threads, each with one BLAS thread; BLAS is restored afterwards.

    More BLAS threads per worker were measured slower: skinny products wait at barriers.
    The results come in the order of the items, so they do not depend on `count`.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        if count == 1:
            yield map
            return
        with ThreadPoolExecutor(count) as pool:
            yield pool.map


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
