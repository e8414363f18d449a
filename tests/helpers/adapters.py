"""Adapters made in memory, and what their merges should come to, by dense float64 arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loramerge import Adapter, LowRank, combine
from loramerge.sources.batches import batches
from loramerge.sources.units import Units, align

SHAPES = {"layers.0.q": (7, 9), "layers.0.v": (8, 6)}


def update(rng, rank, shape=(7, 9), scale=1.0):
    """A random update of that rank."""
    return LowRank(rng.standard_normal((shape[0], rank)), rng.standard_normal((rank, shape[1])), scale)


def random_adapters(seed, ranks: Sequence[int], shapes=SHAPES, scale=1.0):
    """One adapter per rank, on all these modules."""
    rng = np.random.default_rng(seed)
    return [
        Adapter.of({path: update(rng, rank, shape, scale) for path, shape in shapes.items()}, f"source{t}")
        for t, rank in enumerate(ranks)
    ]


def changed(source: Adapter, change) -> Adapter:
    """The adapter with every update replaced by `change(update)`."""
    return Adapter.of({target.path: change(source[target]) for target in source}, source.name)


def cast(source: Adapter, dtype) -> Adapter:
    return changed(source, lambda u: LowRank(u.up.astype(dtype), u.down.astype(dtype), u.scale))


def zero(source: Adapter) -> Adapter:
    """As before training: all lora_B are zero."""
    return changed(source, lambda u: LowRank(0 * u.up, u.down, u.scale))


def dense(source: Adapter) -> dict[str, np.ndarray]:
    return {target.path: source[target].dense() for target in source}


def weighted(sources: Sequence[Adapter], weights) -> dict[str, np.ndarray]:
    """Σ w_t ΔW_t of every module; a source that lacks it counts as zero."""
    total: dict[str, np.ndarray] = {}
    for weight, source in zip(weights, sources, strict=True):
        for path, matrix in dense(source).items():
            total[path] = total.get(path, 0.0) + weight * matrix
    return total


def merged(sources, method="linear", weights=None, **options):
    """The dense ΔW of a merge kept in float64, by module path. Toy names need not be those of one model."""
    kept = {"dtype": "float64", "threads": 1, "allow_disjoint": True, **options}
    return dense(combine(sources, method, weights=weights, **kept).adapter)


def distance(first, second) -> float:
    """‖first − second‖ / ‖second‖ over all modules (absolute where the second is zero)."""
    assert first.keys() == second.keys()
    apart = np.sqrt(sum(np.sum((first[path] - second[path]) ** 2) for path in second))
    whole = np.sqrt(sum(np.sum(second[path] ** 2) for path in second))
    return float(apart / whole if whole > 0 else apart)


def truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    """The best approximation of that rank, by a dense SVD."""
    u, sigma, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * sigma[:rank]) @ vt[:rank]


def units_of(sources: Sequence[Adapter]) -> list[Units]:
    return list(batches(sources, align(sources)))
