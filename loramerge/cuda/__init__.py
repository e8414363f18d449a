"""CUDA kernels with the names and signatures of their NumPy references (none yet: see CHANGELOG).

They live inside the package: a top-level ``cuda`` would shadow NVIDIA's namespace package, which
CuPy 14 imports.
"""

from __future__ import annotations


def available() -> bool:
    """Whether CuPy is installed and one small kernel really runs; a device count alone proves nothing.

    >>> available() in (True, False)
    True
    """
    try:
        import cupy

        return float((cupy.arange(3) + 1).sum()) == 6.0
    except Exception:  # no cupy, no driver, no device: CuPy raises something else for each
        return False
