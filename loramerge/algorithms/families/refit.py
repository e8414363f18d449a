"""The best low-rank factors of a full matrix, by block subspace iteration from a good start."""

from __future__ import annotations

from itertools import count

import numpy as np

from loramerge.arrays.backend import Array, like, namespace, ratio
from loramerge.arrays.linalg import singular_values, svd
from loramerge.arrays.remix import Fit
from loramerge.arrays.workers import go_on

SMALL = 192  # rows or columns: below, a whole SVD is as fast
EXCESS = 1e-7  # of ‖A‖², that the fit may lose more than the best one
GUARD = 8  # vectors more than asked for, which make the others converge
# all rows that sources span, cut to the rank at the end: random adapters have many nearly equal σ, which a
# block of just the rank tells apart in 16 rounds instead of 3 to 4
WIDEST = 256  # rows of a start that are all used: what it spans is strong, and told apart in one round
WHOLE = 32  # bytes of an entry while a whole SVD is made: in float64, its copy, singular vectors and theirs
ITERATED = 24  # bytes of a number of the block: old and new vectors, what they come to, and copies for QR
PATIENCE = 8  # rounds, before twice as many vectors are used


def energy(matrix: Array) -> float:
    """‖·‖², rows added up in float64."""
    return float(namespace(matrix).einsum("ij,ij->i", matrix, matrix).sum(dtype=np.float64))


def refit(matrix: Array, rank: int, start: Array, excess: float = EXCESS) -> Fit:
    """The factors up (out, k) and down (k, in) nearest to a matrix A (out, in), k = `rank`.

    Alternates U = orth(A V) and V = orth(Aᵀ U). After each round the residuals r_i = ‖Aᵀu_i - θ_i v_i‖ bound
    what the leading k could still gain, by Σ_i min(θ_i r_i, (θ_i r_i)² / (θ_i² - θ_b²)) with the last of all
    vectors for the part of the spectrum that is not seen; it ends when that is below `excess` ‖A‖². Where
    that takes long, the spectrum is flat, and more vectors are used; with as many as A has rows or columns
    it is exact.

    Args:
        start: (s, in) rows that span what A is expected to be made of.
    """
    xp, whole = namespace(matrix), energy(matrix)
    if whole == 0.0:
        return Fit(xp.zeros((matrix.shape[0], rank)), xp.zeros((rank, matrix.shape[1])), 0.0, 0.0)
    if min(matrix.shape) <= SMALL:
        u, sigma, vt = whole_svd(matrix)
    else:
        u, sigma, vt = _iterated(matrix, rank, start, excess * whole)
    up, down, kept = u[:, :rank], vt[:rank], sigma[:rank]
    root = xp.sqrt(kept.astype(np.float64))
    return Fit(up * root, root[:, None] * down, whole, max(whole - float((kept**2).sum(dtype=float)), 0.0))


def fitting(shape: tuple[int, int], rank: int, units: int) -> int:
    """Bytes beside a matrix (out, in) of float32 while factors of that rank are found, from so many rows."""
    if min(shape) <= SMALL:
        return WHOLE * shape[0] * shape[1]
    block = 2 * max(rank + max(GUARD, rank // 2), min(units, WIDEST))  # twice as many where it takes long
    return ITERATED * min(block, *shape) * sum(shape)


def whole_svd(matrix: Array) -> tuple[Array, Array, Array]:
    """U (out, m), σ (m,) and Vᵀ (m, in) of a small matrix, in float64."""
    u, sigma, vt = svd(matrix.astype(np.float64), full_matrices=False)
    return u, sigma, vt


def _iterated(matrix: Array, rank: int, start: Array, enough: float) -> tuple[Array, Array, Array]:
    """(out, b), (b,), (b, in) leading singular units."""
    xp, most = namespace(matrix), min(matrix.shape)
    block = min(max(rank + max(GUARD, rank // 2), min(len(start), WIDEST)), most)
    v = _orthonormal(_begun(start, block).T.astype(matrix.dtype))
    for turn in count(1):
        go_on()
        q, triangle = np.linalg.qr(matrix @ v)
        x, theta, zt = svd(triangle)
        u, v = (q @ x)[:, :block], (v @ zt.T)[:, :block]
        theta = theta[:block]
        w = matrix.T @ u  # (in, b)
        residual = xp.linalg.norm(w - v * theta, axis=0) * theta  # of AᵀA
        gap = theta**2 - theta[-1] ** 2
        apart = gap > residual
        gain = xp.where(apart, ratio(residual**2, gap, apart), residual)[:rank].sum(dtype=float)
        v, triangle = np.linalg.qr(w)
        if gain <= enough or block == most:
            break
        if turn % PATIENCE == 0:  # too flat a spectrum for so few vectors
            block = min(2 * block, most)
            v = _orthonormal(_begun(v.T, block).T.astype(matrix.dtype))
    x, theta, zt = svd(triangle)  # A ≈ U Wᵀ, W = V x θ zᵀ
    return u @ zt.T, theta, (v @ x).T


def _begun(start: Array, block: int) -> Array:
    """(block, in) rows of the start: filled up with random rows if they are few, mixed if they are many."""
    rng, (count, wide) = np.random.default_rng(0), start.shape
    if count > block:
        return like(rng.standard_normal((block, count)).astype(start.dtype), start) @ start
    more = like(rng.standard_normal((block - count, wide)), start)
    return namespace(start).concatenate([start, more])


def _orthonormal(columns: Array) -> Array:
    return np.linalg.qr(columns)[0]


def squares(matrix: Array, share: float = 1.0, start: Array | None = None) -> Array:
    """All σ² of a matrix, largest first; or only the leading ones that hold this share of ‖·‖², and then what
    is left of it as one number.

    Args:
        start: as for `refit`, for a share below 1.
    """
    xp = namespace(matrix)
    if min(matrix.shape) <= SMALL:
        return singular_values(matrix.astype(np.float64)) ** 2
    if share < 1 and start is not None and (found := _leading(matrix, share, start)) is not None:
        return found
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    gram = xp.zeros((len(wide), len(wide)))
    for left in range(0, wide.shape[1], 1024):
        go_on()
        piece = wide[:, left : left + 1024].astype(np.float64)
        gram += piece @ piece.T
    return xp.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)


def _leading(matrix: Array, share: float, start: Array) -> Array | None:
    """The leading σ² that hold the share, found step by step; None if computing all of them is cheaper."""
    whole, rank = energy(matrix), 8
    while rank <= min(matrix.shape) // 8:
        found = _iterated(matrix, rank, start, EXCESS * whole)[1][:rank].astype(np.float64) ** 2
        if found.sum() >= share * whole:
            return namespace(found).append(found, max(whole - float(found.sum()), 0.0))
        rank *= 2
    return None
