"""NVIDIA's own compiler, which needs no GPU and no driver: its library from PyPI, called by ctypes."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import lru_cache
from pathlib import Path

import pytest

from loramerge.cuda.load import FOLDER, options


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("nvidia")
    found = [
        p
        for root in (spec.submodule_search_locations or [] if spec else [])
        for p in Path(root).glob("cu*/lib")
    ]
    for folder in found:
        names = sorted(folder.glob("libnvrtc.so.*"))
        if names:
            for builtins in folder.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(names[0]))
    pytest.skip("nvidia-cuda-nvrtc is not installed: pip install nvidia-cuda-nvrtc.")


def compiled(name: str, architecture: int) -> tuple[bytes, str]:
    """The cubin of NAME.cu for sm_XX, and what the assembler said of registers and spills."""
    nvrtc, program = library(), ctypes.c_void_p()
    source = (FOLDER / f"{name}.cu").read_bytes()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, name.encode(), 0, None, None) == 0
    asked = [*options(), f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v"]
    array = (ctypes.c_char_p * len(asked))(*(option.encode() for option in asked))
    failed = nvrtc.nvrtcCompileProgram(program, len(asked), array)
    log = _text(program, "ProgramLog").decode()
    assert not failed, log
    return _text(program, "CUBIN"), log


def _text(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(library(), f"nvrtcGet{what}")(program, buffer)
    return buffer.raw
