"""NVIDIA's own compiler, which needs no GPU and no driver: its library from PyPI, called by ctypes."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from loramerge.cuda.load import FOLDER, options

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)


class Missing(Exception):
    """nvidia-cuda-nvrtc is not installed."""


@dataclass(frozen=True)
class Used:
    """What ptxas says: registers of a thread, bytes of its stack and spills, shared memory of a block."""

    registers: int
    stack: int
    spills: int
    shared: int


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """Raises Missing."""
    spec = importlib.util.find_spec("nvidia")
    roots = (spec.submodule_search_locations or []) if spec else []
    for folder in [found for root in roots for found in Path(root).glob("cu*/lib")]:
        if names := sorted(folder.glob("libnvrtc.so.*")):
            for builtins in folder.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(names[0]))
    raise Missing("nvidia-cuda-nvrtc is not installed: pip install nvidia-cuda-nvrtc.")


def version() -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    assert library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)) == 0
    return f"{major.value}.{minor.value}"


def compiled(name: str, architecture: str, asked: Sequence[str] | None = None) -> tuple[bytes, str]:
    """The cubin of NAME.cu for ``sm_90``, or its PTX for ``compute_90``; and what the assembler said of it.

    Args:
        asked: other options than those of the package.
    """
    nvrtc, program = library(), ctypes.c_void_p()
    source = (FOLDER / f"{name}.cu").read_bytes()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, name.encode(), 0, None, None) == 0
    binary = architecture.startswith("sm_")
    words = [*(options() if asked is None else asked), f"--gpu-architecture={architecture}"]
    words += ["--ptxas-options=-v"] if binary else []
    array = (ctypes.c_char_p * len(words))(*(word.encode() for word in words))
    failed = nvrtc.nvrtcCompileProgram(program, len(words), array)
    log = _text(program, "ProgramLog").decode()
    assert not failed, log
    return _text(program, "CUBIN" if binary else "PTX"), log


def used(log: str) -> Used:
    """From the report of ptxas.

    >>> used("Used 30 registers, 64 bytes smem, 4 bytes spill stores, 8 bytes spill loads")
    Used(registers=30, stack=0, spills=12, shared=64)
    """

    def number(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, log)))

    spills = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    return Used(
        number(r"Used (\d+) registers"), number(r"(\d+) bytes stack"), spills, number(r"(\d+) bytes smem")
    )


def measured(names: Sequence[str]) -> dict[str, object]:
    """Kernel -> architecture -> what it uses, with the compiler and the options that made it."""
    each = {n: {str(a): asdict(used(compiled(n, f"sm_{a}")[1])) for a in ARCHITECTURES} for n in names}
    return {
        "nvrtc": version(),
        "options": [o for o in options() if not o.startswith(("-I", "-D"))],
        "kernels": each,
    }


def _text(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(library(), f"nvrtcGet{what}")(program, buffer)
    return buffer.raw
