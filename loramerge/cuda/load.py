"""Kernels by their names, compiled once for a device and kept by CuPy on disk."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

from loramerge.arrays.backend import cupy

FOLDER = Path(__file__).parent
KERNELS = ("kmeans", "widen")  # each a function of that name in NAME.cu


@cache
def options() -> tuple[str, ...]:
    """How kernels are compiled. CuPy's cache does not look into headers, so that their sum is an option."""
    headers = b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.cuh")))
    return ("-std=c++17", f"-I{FOLDER}", f"-DHEADERS={crc32(headers)}u")


def kernel(name: str) -> Any:
    """The function of that name on the current device."""
    return _loaded(name, cupy().cuda.runtime.getDevice())


@cache
def _loaded(name: str, device: int) -> Any:
    source = (FOLDER / f"{name}.cu").read_text(encoding="utf-8")
    return cupy().RawModule(code=source, options=options()).get_function(name)


def shared_limit() -> int:
    """Bytes of shared memory that a block may ask for on the current device."""
    known = cupy()
    return int(known.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"])
