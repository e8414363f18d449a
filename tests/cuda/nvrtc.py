"""The compiler of the benchmarks, for tests that are skipped where it is not installed."""

from __future__ import annotations

import pytest

from benchmarks.speed import nvrtc


def compiled(name, architecture, asked=None):
    """Cubin or PTX and the log, as `benchmarks.speed.nvrtc.compiled`."""
    try:
        return nvrtc.compiled(name, architecture, asked)
    except nvrtc.Missing as missing:
        pytest.skip(str(missing))
