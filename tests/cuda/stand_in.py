"""A CuPy without a GPU: arrays that NumPy cannot touch, and kernels that real threads of the host run."""

from __future__ import annotations

import ctypes
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from loramerge.arrays import backend
from loramerge.cuda import load, worth
from tests.cuda.host import at, library
from tests.helpers.device import AWAY, STREAMS, Away

FEW = 3  # blocks of `widen`
SHARED = 232448  # bytes that a block may have, as on an H200


CACHE = tempfile.TemporaryDirectory()  # of cubins


class OutOfMemoryError(Exception):
    """As `cupy.cuda.memory` has it."""


class Module:
    """`cupy.RawModule`: its functions take what a kernel takes, and run it on the host."""

    def __init__(self, path):
        self.code = Path(path).read_text(encoding="utf-8")

    def get_function(self, name):
        assert f"__global__ void {name}(" in self.code
        return Function(getattr(library(), f"run_{name}"))


COMPILED = []  # the options of each compilation


def compiled(source, options, architecture, filename):
    """`compile_using_nvrtc`, whose cubin is the source."""
    COMPILED.append((filename, options, architecture))
    return source.encode(), None


class Pinned(bytearray):
    """`cupy.cuda.PinnedMemoryPointer`: bytes of the host."""

    def size(self):
        return len(self)


class Stream:
    def synchronize(self):
        STREAMS.wait()


class Event:
    def __init__(self, disable_timing):
        assert disable_timing

    def record(self):
        self.recorded = True

    def synchronize(self):
        assert self.recorded


class Pool:
    """`cupy.get_default_memory_pool()`."""

    total, freed = 0, 0

    def total_bytes(self):
        return self.total

    def free_all_blocks(self):
        self.freed += 1


POOL = Pool()


LAUNCHED = []  # the kernels, one by one


class Function:
    max_dynamic_shared_size_bytes = 48 << 10

    def __init__(self, run):
        self.run = run

    def __call__(self, grid, block, arguments, shared_mem=0):
        LAUNCHED.append(self.run.__name__.removeprefix("run_"))
        assert shared_mem <= max(self.max_dynamic_shared_size_bytes, 48 << 10)
        assert all(isinstance(each, Away | np.integer) for each in arguments), "Python's numbers have no size"
        # widen strides by its grid: a thread of the host for each of a million numbers would take minutes
        blocks = min(grid[0], FEW) if self.run.__name__ == "run_widen" else grid[0]
        sizes = [ctypes.c_uint(blocks), ctypes.c_uint(block[0])]
        if self.run.__name__ == "run_kmeans":
            sizes.append(ctypes.c_size_t(shared_mem))
        self.run(*map(_passed, arguments), *sizes)


def _passed(value):
    if isinstance(value, Away):
        return at(value._held)
    return (ctypes.c_longlong if value.dtype.itemsize == 8 else ctypes.c_int)(int(value))


class Device:
    attributes = {"MaxSharedMemoryPerBlockOptin": SHARED}  # noqa: RUF012
    compute_capability = "90"
    used = []  # noqa: RUF012

    def __init__(self, number=0):
        if number > 1:
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.number = number

    def synchronize(self):
        STREAMS.wait()

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
    empty=lambda shape, dtype: Away(np.full(shape, 77, dtype)),
    float64=np.float64,
    ascontiguousarray=AWAY.ascontiguousarray,
    __version__="14.2.0",
    RawModule=Module,
    get_default_memory_pool=lambda: POOL,
    get_default_pinned_memory_pool=lambda: POOL,
    cuda=SimpleNamespace(
        compiler=SimpleNamespace(compile_using_nvrtc=compiled),
        nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)),
        alloc_pinned_memory=Pinned,
        get_current_stream=Stream,
        Event=Event,
        Device=Device,
        runtime=SimpleNamespace(
            getDevice=lambda: 0,
            getDeviceProperties=lambda number: {"name": b"stand-in"},
            driverGetVersion=lambda: 13000,
            runtimeGetVersion=lambda: 13000,
        ),
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    ),
)


@contextmanager
def installed(monkeypatch):
    """`import cupy` gives the stand-in inside."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cupy", CUPY)
        patch.setenv("CUPY_CACHE_DIR", CACHE.name)
        for kept in (load._loaded, load._kept, worth.measured):
            kept.cache_clear()
        Device.used.clear()
        LAUNCHED.clear()
        backend._thread.number = None
        with STREAMS.watched():
            yield CUPY
        assert not STREAMS.early, "memory was given back while another thread's work still read it"
    load._loaded.cache_clear()
    load._kept.cache_clear()
    backend._thread.number = None
