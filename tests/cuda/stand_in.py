"""A CuPy without a GPU: arrays that NumPy cannot touch, and kernels that real threads of the host run."""

from __future__ import annotations

import ctypes
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

from loramerge.cuda import load
from tests.cuda.host import at, library
from tests.helpers.device import AWAY, Away

SHARED = 232448  # bytes that a block may have, as on an H200


class OutOfMemoryError(Exception):
    """As `cupy.cuda.memory` has it."""


class Module:
    """`cupy.RawModule`: its functions take what a kernel takes, and run it on the host."""

    def __init__(self, code, options):
        assert "-std=c++17" in options
        self.code = code

    def get_function(self, name):
        assert f"__global__ void {name}(" in self.code
        return Function(getattr(library(), f"run_{name}"))


class Function:
    max_dynamic_shared_size_bytes = 48 << 10

    def __init__(self, run):
        self.run, self.launches = run, []

    def __call__(self, grid, block, arguments, shared_mem=0):
        assert shared_mem <= max(self.max_dynamic_shared_size_bytes, 48 << 10)
        assert all(isinstance(each, Away | np.integer) for each in arguments), "Python's numbers have no size"
        sizes = [ctypes.c_uint(grid[0]), ctypes.c_uint(block[0])]
        if self.run.__name__ == "run_kmeans":
            sizes.append(ctypes.c_size_t(shared_mem))
        self.run(*map(_passed, arguments), *sizes)


def _passed(value):
    if isinstance(value, Away):
        return at(value._held)
    return (ctypes.c_longlong if value.dtype.itemsize == 8 else ctypes.c_int)(int(value))


class Device:
    attributes = {"MaxSharedMemoryPerBlockOptin": SHARED}  # noqa: RUF012
    used = []  # noqa: RUF012

    def __init__(self, number=0):
        if number > 1:
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.number = number

    def use(self):
        self.used.append(self.number)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


CUPY = SimpleNamespace(
    ndarray=Away,
    arange=lambda n: Away(np.arange(n)),
    asarray=AWAY.asarray,
    empty=lambda shape, dtype: Away(np.full(shape, -7, dtype)),
    float64=np.float64,
    RawModule=Module,
    cuda=SimpleNamespace(
        Device=Device,
        runtime=SimpleNamespace(getDevice=lambda: 0),
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    ),
)


@contextmanager
def installed(monkeypatch):
    """`import cupy` gives the stand-in inside."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cupy", CUPY)
        load._loaded.cache_clear()
        Device.used.clear()
        yield CUPY
    load._loaded.cache_clear()
