"""The launcher of kmeans.cu: what it needs beside the kernels of the modules, and where that lies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loramerge.arrays.backend import Array, cupy
from loramerge.cuda.load import check_array, kernel, shared_limit

WARP, MOST = 32, 256  # threads
SLOTS = 32  # doubles for reductions, WARPS in block.cuh


@dataclass(frozen=True, slots=True)
class Layout:
    """How a block is laid out for modules of R units.

    Args:
        threads: of a block.   shared: bytes of dynamic shared memory.
        desk: bytes of the tables of one module, as Desk::bytes in kmeans.cuh has them.
        desk_on_chip, kernel_on_chip: what of both lies in shared memory.
    """

    threads: int
    shared: int
    desk: int
    desk_on_chip: bool
    kernel_on_chip: bool


def layout(units: int, k: int, trials: int, limit: int) -> Layout:
    """The layout for a device that lets a block have `limit` bytes of shared memory.

    >>> layout(128, 16, 4, 232448).kernel_on_chip, layout(512, 64, 6, 232448).kernel_on_chip
    (True, False)
    """
    desk = desk_bytes(units, k, trials)
    square = 8 * units * units
    desk_on_chip = desk <= limit
    kernel_on_chip = desk_on_chip and desk + square <= limit
    threads = min(MOST, -(-max(units, WARP) // WARP) * WARP)
    shared = desk * desk_on_chip + square * kernel_on_chip
    return Layout(threads, shared, desk, desk_on_chip, kernel_on_chip)


def desk_bytes(units: int, k: int, trials: int) -> int:
    doubles, integers = 4 * units + k + trials + SLOTS, 3 * units + 3 * k + trials
    return 8 * doubles + 8 * ((integers + 1) // 2)


def clusters(kernels: Array, live: Array, uniforms: Array) -> Array:
    """Cluster index (M, R) of every unit, -1 where it is not live; all arrays on the current GPU.

    Args:
        kernels: (M, R, R) float64, centred.   live: (M, R) bool.
        uniforms: (M, restarts, k, trials) float64.

    Raises:
        ValueError: shapes or types that do not belong together.
    """
    check(kernels, live, uniforms)
    modules, units = live.shape
    restarts, k, trials = uniforms.shape[1:]
    limit = shared_limit()
    plan = layout(units, k, trials, limit)
    known = cupy()
    labels = known.empty((modules, units), np.int64)
    far = known.empty((modules, k, units), np.float64)
    desks = known.empty(0 if plan.desk_on_chip else modules * plan.desk // 8, np.float64)
    function = kernel("kmeans")
    # the same for all: another worker may set it between here and the launch
    function.max_dynamic_shared_size_bytes = limit
    arrays = (kernels, live, uniforms, far, desks, labels)
    sizes = (units, k, trials, restarts, plan.desk_on_chip, plan.kernel_on_chip)
    function((modules,), (plan.threads,), (*arrays, *map(np.int32, sizes)), shared_mem=plan.shared)
    return labels


def check(kernels: Array, live: Array, uniforms: Array) -> None:
    """Raises ValueError: the kernel would read beyond an array, or misread it."""
    if live.ndim != 2:
        raise ValueError(f"kmeans: live is {list(live.shape)}, not (M, R).")
    modules, units = live.shape
    wanted = {
        "kernels": (kernels, (modules, units, units), "float64"),
        "live": (live, (modules, units), "bool"),
        "uniforms": (uniforms, (modules, *uniforms.shape[1:4]), "float64"),
    }
    for name, (array, shape, dtype) in wanted.items():
        check_array("kmeans", name, array, shape, dtype)
    if uniforms.ndim != 4 or not all(uniforms.shape):
        raise ValueError(f"kmeans: uniforms are {list(uniforms.shape)}, not (M, restarts, k, trials).")
