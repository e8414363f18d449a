"""Polar factors: the matrix with orthonormal columns that is nearest to given ones.

    X = P Σ Qᵀ      polar factor P Qᵀ, over the σ above rank_tol · σ₁

Dependent columns cannot become orthonormal. The factor is then a partial isometry: such columns share their
directions, each shorter than 1, so that copies of a column add up to one column.
"""

from __future__ import annotations

from loramerge.arrays.backend import Array, namespace, positions, ratio
from loramerge.arrays.linalg import svd


def nearest(columns: Array, rank_tol: float) -> Array:
    """The polar factor (…, R, k) of columns (…, R, k); zero columns stay zero.

    >>> import numpy as np
    >>> nearest(np.array([[1.0, 1.0], [0.0, 1e-3]]), 1e-5).round(3)
    array([[ 0.707,  0.707],
           [-0.707,  0.707]])
    """
    p, sigma, qt = svd(columns, full_matrices=False)
    kept = sigma > rank_tol * sigma[..., :1]
    return (p * kept[..., None, :]) @ qt


def rows_as_directions(reach: Array) -> Array:
    """The polar factor of coordinates S Wᵀ (M, R, R) in a basis of their own: Wᵀ where S is not zero."""
    length = namespace(reach).linalg.norm(reach, axis=2, keepdims=True)
    return ratio(reach, length, length > 0)


def singular(x: Array, sigma: Array, y: Array) -> tuple[Array, Array, Array]:
    """(X, σ, Yᵀ) of x diag(σ) yᵀ, strongest first, for polar factors x and y (M, R, R).

    Where both have orthonormal columns this is its SVD already.
    """
    xp = namespace(sigma)
    order = xp.argsort(-sigma, axis=1, kind="stable")
    x, y = (xp.take_along_axis(side, order[:, None, :], 2) for side in (x, y))
    sigma, yt = xp.take_along_axis(sigma, order, 1), y.swapaxes(1, 2).copy()
    if short := positions(_shortened(x, sigma) | _shortened(y, sigma)):
        x[short], sigma[short], yt[short] = svd(x[short] * sigma[short][:, None, :] @ yt[short])
    return x, sigma, yt


def _shortened(side: Array, sigma: Array) -> Array:
    """(M,) whether some column that counts is shorter than 1."""
    return ((side**2).sum(axis=1) < (1 - 1e-9) * (sigma > 0)).any(axis=1)
