"""Kernels in CUDA, the launchers that check what they are given, and the GPU that runs them.

A kernel is a ``.cu`` file for NVRTC with its body in a ``.cuh``. The tests compile the same bodies for the
host. The room lives inside the package: a top-level ``cuda`` would shadow NVIDIA's namespace package, which
CuPy imports.
"""

from __future__ import annotations

from loramerge.cuda.gpu import Gpu, available, find, workspace_by_rule

__all__ = ["Gpu", "available", "find", "workspace_by_rule"]
