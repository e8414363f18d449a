"""Common subspaces of several small matrices: Tucker's decomposition of two sides, by HOOI."""

from __future__ import annotations

import numpy as np

from loramerge.arrays.backend import Array, namespace
from loramerge.arrays.gram import triangle
from loramerge.arrays.linalg import svd
from loramerge.arrays.workers import go_on

Cores = list[tuple[Array, Array]]  # of every source: up and down (R, r), the matrix being up @ downᵀ
CHANGE = 1e-6  # of the relative error, below which nothing more is tried
ROUNDS = 1000


def subspaces(cores: Cores, k: int) -> tuple[Array, Array]:
    """Orthonormal U and V (R, k) with Σ_t ‖Uᵀ X_t V‖² as large as can be, the strongest columns first.

    Starts from the singular vectors of the matrices, side by side and on top of each other. Then each side in
    turn becomes the best for the other. Columns beyond the span of the matrices are zero.

    >>> up, down = np.eye(3)[:, :2] * [2.0, 1.0], np.eye(3)[:, 1:]
    >>> [abs(side).tolist() for side in subspaces([(up, down)], 1)]
    [[[1.0], [0.0], [0.0]], [[0.0], [1.0], [0.0]]]
    """
    if not cores:
        return np.zeros((1, k)), np.zeros((1, k))
    turned = [(down, up) for up, down in cores]
    left, right = _leading(_seen(cores, None), k), _leading(_seen(turned, None), k)
    total = sum(float(((up.T @ up) * (down.T @ down)).sum()) for up, down in cores)  # Σ‖X_t‖²
    before = np.inf
    for _ in range(ROUNDS):
        go_on()
        left = _leading(_seen(cores, right), k)
        seen = _seen(turned, left)
        right = _leading(seen, k)
        error = max(1 - float(((right.T @ seen) ** 2).sum()) / total, 0.0) ** 0.5
        if abs(before - error) < CHANGE:
            break
        before = error
    return left, right


def _seen(cores: Cores, side: Array | None) -> Array:
    """[X₁ V … X_T V] (R, T k), or with V = None something with the same Gram on the left, (R, Σ r)."""
    xp = namespace(cores[0][0])
    if side is not None:
        return xp.concatenate([up @ (down.T @ side) for up, down in cores], axis=1)
    return xp.concatenate([up @ triangle(down).T for up, down in cores], axis=1)


def _leading(columns: Array, k: int) -> Array:
    """The k leading left singular vectors, strongest first; zero where there are no more."""
    xp = namespace(columns)
    u, sigma, _ = svd(columns, full_matrices=False)
    some = sigma[:k] > 1e-12 * sigma[:1]
    made = xp.zeros((len(columns), k))
    made[:, : len(some)] = u[:, : len(some)] * some
    return made
