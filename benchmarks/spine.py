"""One module, factors against dense: `python -m benchmarks.spine [SIZE]` (2048 by default).

Merges four adapters of rank 16 in one SIZE×SIZE module to rank 16, by `svd` and by `lego`, and times NumPy's
dense float32 SVD of the same sum once. Prints CPU times and their ratios, after asserting that `svd` loses no
more than the dense optimum.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from loramerge import Adapter, Target, combine
from loramerge.adapter import Held, Slot
from loramerge.backend import workers

RANK, SOURCES = 16, 4


def adapter(size: int, seed: int) -> Adapter:
    """A random adapter with one module."""
    rng = np.random.default_rng(seed)
    up, down = (rng.standard_normal(shape, dtype=np.float32) for shape in ((size, RANK), (RANK, size)))
    return Adapter(f"adapter{seed}", {Target("module"): Slot(Held(up), Held(down), 0.5)})


def cpu_seconds(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median CPU time of `repeats` calls, and what the last one returned."""
    times, value = [], None
    for _ in range(repeats):
        start = time.process_time()
        value = work()
        times.append(time.process_time() - start)
    return float(np.median(times)), value


def main() -> None:
    """Assert, measure, print."""
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    sources = [adapter(size, seed) for seed in range(SOURCES)]
    total = sum((a[Target("module")].dense() for a in sources), np.zeros((size, size)))
    with workers(1):
        dense, sigma = cpu_seconds(lambda: np.linalg.svd(total.astype(np.float32))[1], 1)
        svd, merge = cpu_seconds(lambda: combine(sources, "svd", rank=RANK, threads=1), 7)
        lego, _ = cpu_seconds(lambda: combine(sources, "lego", rank=RANK, threads=1), 7)
    missed = np.linalg.norm(total - merge.adapter[Target("module")].dense())
    excess = missed / np.linalg.norm(sigma[RANK:]) - 1
    assert excess < 1e-6, f"svd is {excess:.1e} above the optimum"
    print(f"{SOURCES} adapters of rank {RANK}, one {size}×{size} module, one BLAS thread")
    print(f"dense float32 SVD   {dense:9.3f} s CPU        1 x")
    for name, seconds in (("svd", svd), ("lego", lego)):
        print(f"loramerge {name:<9} {seconds:9.4f} s CPU {dense / seconds:8.0f} x")
    print(f"error above the optimum: {excess:.1e} of it")


if __name__ == "__main__":
    main()
