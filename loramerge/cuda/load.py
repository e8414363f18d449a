"""Kernels by their names, compiled once for an architecture with options of our own, and kept on disk."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

from loramerge.arrays.backend import cupy

FOLDER = Path(__file__).parent
KERNELS = ("kmeans", "widen")  # each a function of that name in NAME.cu
# CuPy would compile with -ftz=true, and a subnormal float would become zero on its way to double.
FLAGS = ("-std=c++17", "-ftz=false", "-prec-div=true", "-prec-sqrt=true", "-fmad=true")


@cache
def options() -> tuple[str, ...]:
    """How kernels are compiled. The name of a kept cubin depends on these, so headers are among them."""
    headers = b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.cuh")))
    return (*FLAGS, f"-I{FOLDER}", f"-DHEADERS={crc32(headers)}u")


def kernel(name: str) -> Any:
    """The function of that name on the current device."""
    return _loaded(name, cupy().cuda.runtime.getDevice())


@cache
def _loaded(name: str, device: int) -> Any:
    architecture = str(cupy().cuda.Device(device).compute_capability)
    return cupy().RawModule(path=str(compiled(name, architecture))).get_function(name)


def compiled(name: str, architecture: str) -> Path:
    """The cubin of a kernel for an architecture such as ``90``, made by NVRTC if it is not there yet."""
    source = (FOLDER / f"{name}.cu").read_text(encoding="utf-8")
    compiler = cupy().cuda.compiler
    told = (source, options(), architecture, cupy().cuda.nvrtc.getVersion())
    path = _kept() / f"loramerge-{name}-{sha256(repr(told).encode()).hexdigest()[:24]}.cubin"
    if not path.exists():
        made, _ = compiler.compile_using_nvrtc(source, options(), architecture, f"{name}.cu")
        handle, draft = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(made)
        os.replace(draft, path)  # another process may be doing the same
    return path


@cache
def _kept() -> Path:
    """The folder of CuPy's own cache; if nothing can be written there, one for this process."""
    folder = Path(os.environ.get("CUPY_CACHE_DIR", "~/.cupy/kernel_cache")).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        _scratch.append(tempfile.TemporaryDirectory(prefix="loramerge-kernels-"))
        return Path(_scratch[-1].name)


_scratch: list[tempfile.TemporaryDirectory[str]] = []  # gone with the process


def shared_limit() -> int:
    """Bytes of shared memory that a block may ask for on the current device."""
    known = cupy()
    return int(known.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"])


def check_array(kernel: str, name: str, array: Any, shape: tuple[int, ...], dtype: str) -> None:
    """Raises ValueError: the kernel would read beyond this array, or misread it."""
    if tuple(array.shape) != shape or array.dtype != dtype or not array.flags.c_contiguous:
        found = f"{array.dtype}{list(array.shape)}"
        raise ValueError(f"{kernel}: {name} is {found}, not a dense {dtype}{list(shape)}.")
