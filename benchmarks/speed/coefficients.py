"""Mixtures, federated methods and KnOTS against `svd`: 7B, eight adapters of rank 16, files to files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

import loramerge as lm
from benchmarks.speed.measure import loramerge
from benchmarks.speed.sections import Row, sources
from benchmarks.speed.shapes import LAYER_7B, LLAMA_7B, Shapes

METHODS = {  # name -> (options, times the time of svd allowed)
    "karcher": (("--rank", "16"), 2),
    "model_stock": (("--rank", "16"), 2),
    "slerp": (("--rank", "16"), 2),
    "fair": ((), 2),
    "fedavg": ((), 2),
    "knots": (("--rank", "16"), 5),
}


def coefficients(where: Path, shapes: Shapes = LLAMA_7B, count: int = 8) -> Iterator[Row]:
    """CPU seconds of each against those of svd; `slerp` of two against svd of two."""
    _check(where)
    folders = sources(where, count, shapes)
    out = ("-o", where / "out", "--overwrite", "-q")
    for some in (folders[:2], folders):
        svd = loramerge("combine", *some, "--method", "svd", "--rank", "16", *out)
        yield Row(f"{len(shapes)} modules, {len(some)}×r16, svd", svd)
        for method, (options, limit) in METHODS.items():
            if (len(some) == 2) == (method == "slerp"):
                cost = loramerge("combine", *some, "--method", method, *options, *out)
                name = f"{len(shapes)} modules, {len(some)}×r16, {method}"
                yield Row(name, cost, "svd, CPU", svd.cpu / cost.cpu, f"≥ {1 / limit:g}")


def _check(where: Path) -> None:
    """One layer: coefficients are those of dense inner products; knots with all entries is near its sum."""
    folders = sources(where / "small", 3, {k: (o // 16, i // 16) for k, (o, i) in LAYER_7B.items()})
    adapters = [lm.load(folder) for folder in folders]
    weights = np.array([1.0, 2.0, 3.0])
    mixed = lm.combine(adapters, "karcher", weights=weights, dtype="float64").adapter
    for target in mixed:
        updates = [a[target].dense() for a in adapters]
        c, *_ = np.linalg.lstsq(np.stack([u.ravel() for u in updates], axis=1), mixed[target].dense().ravel())
        rest = mixed[target].dense() - sum(x * u for x, u in zip(c, updates, strict=True))
        assert np.linalg.norm(rest) < 1e-9 * mixed[target].norm()
        length = weights / weights.sum() @ [np.linalg.norm(u) for u in updates]
        assert abs(mixed[target].norm() / length - 1) < 1e-9
