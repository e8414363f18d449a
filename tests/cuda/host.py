"""The kernels built for the host, with a real thread for each thread of a block (threads.hpp)."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from loramerge.cuda.kmeans import Layout
from loramerge.cuda.load import FOLDER

HERE = Path(__file__).parent
FLAGS = ("-std=c++20", "-pthread", "-Wall", "-Wextra", "-Werror", f"-I{HERE}")
NO_SHARED, PLENTY = 0, 1 << 28  # bytes of shared memory that a block may have


def built(*flags: str, kernels: Path = FOLDER) -> Path:
    """A program or library from host.cpp; `kernels` is the folder of the kernels."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("There is no g++ to build the kernels for the host.")
    out = Path(tempfile.mkdtemp(prefix="kernels-")) / "made"
    command = [compiler, *FLAGS, *flags, f"-I{kernels}", str(HERE / "host.cpp"), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(built("-O2", "-shared", "-fPIC")))
    loaded.desk_bytes.restype = ctypes.c_longlong
    return loaded


def at(array: np.ndarray) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


def clusters(kernels: np.ndarray, live: np.ndarray, uniforms: np.ndarray, plan: Layout) -> np.ndarray:
    """Labels (M, R) by the kernel, launched as `loramerge.cuda.kmeans.clusters` does."""
    (modules, units), (restarts, k, trials) = live.shape, uniforms.shape[1:]
    kernels, uniforms = np.ascontiguousarray(kernels), np.ascontiguousarray(uniforms)
    alive = np.ascontiguousarray(live.astype(np.uint8))
    labels = np.full((modules, units), -7, np.int64)
    far = np.empty((modules, k, units))
    desks = np.empty(modules * plan.desk // 8)
    library().run_kmeans(
        *map(at, (kernels, alive, uniforms, far, desks, labels)),
        *map(ctypes.c_int, (units, k, trials, restarts, plan.desk_on_chip, plan.kernel_on_chip)),
        ctypes.c_uint(modules), ctypes.c_uint(plan.threads), ctypes.c_size_t(plan.shared),
    )  # fmt: skip
    return labels


def widened(bits: np.ndarray, pitch: int, kind: int, threads: int = 64) -> np.ndarray:
    """A matrix widened into rows `pitch` numbers apart; what lies between is left at -7."""
    rows, columns = bits.shape
    out = np.full((rows, pitch), -7.0)
    sizes = map(ctypes.c_longlong, (rows, columns, pitch))
    library().run_widen(
        at(bits), at(out), *sizes, ctypes.c_int(kind), ctypes.c_uint(3), ctypes.c_uint(threads)
    )
    return out
