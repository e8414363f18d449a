"""Factorisations of batches of small matrices, each by itself, on the host and on a GPU.

On the host they are NumPy's. On a GPU only few routines of the libraries take a batch in one launch:
Cholesky, the symmetric eigenproblem and the solution of a system. The others loop over the matrices, one
launch each. So there all is made of these three. What they give is multiplied back, because CuPy does not
look at the error codes of its solvers; what fails is done again, and told.

    SVD of A        eigenvectors (x, y)/√2 of  [0 A; Aᵀ 0]  to the eigenvalues σ, largest first
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import numpy as np

from loramerge.arrays.backend import Array, host, like, namespace, positions, ratio

Solver = Callable[[Array], tuple[Array, ...]]

RESIDUAL = 1e-10  # of A = V Λ Vᵀ, of A = L Lᵀ and of A X = B, above which a result is wrong, not rounded
EVEN = (
    0.1  # sine of a column against those before it, above which A = Q Lᵀ by Cholesky loses two digits at most
)
ORDERS = 4  # that are tried where LAPACK does not converge
DEFINITE = 1e-10  # smallest eigenvalue over the largest, above which a Cholesky that fails is the GPU's fault


def cholesky(matrices: Array) -> Array:
    """Lower factors (N, R, R), each by itself; NaN where a matrix is not positive definite.

    NumPy refuses the whole batch for one such matrix. CuPy leaves half of a factor there, which does not give
    the matrix back.
    """
    xp = namespace(matrices)
    if xp is np:
        return _numpy_cholesky(matrices)
    made = xp.linalg.cholesky(matrices)
    good = _largest(made @ made.swapaxes(-1, -2) - matrices) <= RESIDUAL * _largest(matrices)  # NaN is not
    good &= (made.diagonal(axis1=-2, axis2=-1) > 0).all(axis=-1)
    if bool(good.all()):
        return made
    made = xp.where(good[:, None, None], made, np.nan)
    failed = np.flatnonzero(~host(good))
    for at in failed[host(_definite(matrices[failed]))].tolist():
        made[at] = like(_numpy_cholesky(host(matrices[at])[None])[0], made)
        _tell("Cholesky factorisation", matrices, "factored on the host")
    return made


def _definite(matrices: Array) -> Array:
    """(N,) whether a matrix is finite and well positive definite."""
    xp = namespace(matrices)
    finite = xp.isfinite(matrices).all(axis=(1, 2))
    values = eigh(xp.where(finite[:, None, None], matrices, 0.0))[0]
    return values[:, 0] > DEFINITE * values[:, -1]


def _numpy_cholesky(matrices: Array) -> Array:
    try:
        return np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        if len(matrices) == 1:
            return np.full_like(matrices, np.nan)
        return np.concatenate([_numpy_cholesky(matrices[n : n + 1]) for n in range(len(matrices))])


def solve(matrices: Array, right: Array) -> Array:
    """X (N, R, k) with A X = B, for matrices (N, R, R) that have an inverse.

    Raises:
        numpy.linalg.LinAlgError: one of them is singular.
    """
    xp = namespace(matrices)
    if xp is np:
        return np.linalg.solve(matrices, right)
    found = xp.linalg.solve(matrices, right)
    for at in positions(_unsolved(matrices, found, right)):
        found[at] = like(np.linalg.solve(host(matrices[at]), host(right[at])), found)
        _tell("solver of linear systems", matrices, "solved on the host")
    return found


def _unsolved(matrices: Array, found: Array, right: Array) -> Array:
    """(N,) which of these are wrong solutions. NaN is wrong unless the system holds NaN."""
    xp, rows = namespace(matrices), matrices.shape[-1]
    size = rows * _largest(matrices) * _largest(found) + _largest(right)
    off = _largest(matrices @ found - right)
    given = xp.isfinite(_largest(matrices)) & xp.isfinite(_largest(right))
    return given & ~(off <= RESIDUAL * size)


def eigh(matrices: Array) -> tuple[Array, Array]:
    """Eigenvalues (…, R), smallest first, and eigenvectors (…, R, R) of symmetric matrices."""
    xp = namespace(matrices)
    if xp is np:
        values, vectors = _on_host(np.linalg.eigh, matrices, 2)
        return values, vectors
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    values, vectors = xp.linalg.eigh(flat)
    for wrong in positions(_wrong(flat, values, vectors)):
        values[wrong], vectors[wrong] = _again(flat[wrong])
    return values.reshape(matrices.shape[:-1]), vectors.reshape(matrices.shape)


def _wrong(matrices: Array, values: Array, vectors: Array) -> Array:
    """(N,) whether these are no eigenvectors. NaN is wrong too, unless the matrix has it."""
    off = vectors * values[:, None, :] @ vectors.swapaxes(1, 2)
    off -= matrices
    size = _largest(matrices)
    return namespace(matrices).isfinite(size) & ~(_largest(off) <= RESIDUAL * matrices.shape[-1] * size)


def _largest(matrices: Array) -> Array:
    """(…) the largest |entry|, without a third copy of the matrices; NaN if one is."""
    xp = namespace(matrices)
    return xp.maximum(matrices.max(axis=(-2, -1)), -matrices.min(axis=(-2, -1)))


def _again(matrix: Array) -> tuple[Array, Array]:
    """One matrix (R, R) by itself, which takes another routine; if that fails too, on the host."""
    values, vectors = namespace(matrix).linalg.eigh(matrix)
    where = "solved one by one"
    if bool(_wrong(matrix[None], values[None], vectors[None]).any()):
        where = "solved on the host"
        values, vectors = (like(each, matrix) for each in np.linalg.eigh(host(matrix)))
    _tell("eigensolver", matrix, where)
    return values, vectors


def _tell(routine: str, matrices: Array, remedy: str) -> None:
    warnings.warn(
        f"The GPU's batched {routine} failed on a matrix of {matrices.shape[-1]} rows, which was {remedy}.",
        RuntimeWarning,
        stacklevel=3,
    )


def svd(matrices: Array, full_matrices: bool = True) -> tuple[Array, Array, Array]:
    """U (…, m, k), σ (…, k) largest first and Vᵀ (…, k, n), k = min(m, n).

    `full_matrices` is for square matrices, where it changes nothing, and for the host. On a GPU the vectors
    of a σ that is rounding have any length, where NumPy completes the bases.
    """
    if namespace(matrices) is np:
        u, sigma, vt = _on_host(partial(np.linalg.svd, full_matrices=full_matrices), matrices, 1)
        return u, sigma, vt
    if matrices.shape[-2] < matrices.shape[-1]:
        u, sigma, vt = svd(matrices.swapaxes(-1, -2))
        return vt.swapaxes(-1, -2), sigma, u.swapaxes(-1, -2)
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    u, sigma, vt = (_tall if flat.shape[1] > flat.shape[2] else _embedded)(flat)
    lead = matrices.shape[:-2]
    return tuple(each.reshape(*lead, *each.shape[1:]) for each in (u, sigma, vt))  # type: ignore[return-value]


def singular_values(matrices: Array) -> Array:
    """σ (…, k), largest first."""
    if namespace(matrices) is np:
        with suppress(np.linalg.LinAlgError):
            return np.linalg.svd(matrices, compute_uv=False)
    return svd(matrices)[1]


def _on_host(solve: Solver, matrices: Array, sides: int) -> tuple[Array, ...]:
    """NumPy's. LAPACK does not converge on a few matrices, and does with their rows in another order.

    Args:
        sides: 1, as P A = (P U) Σ Vᵀ has the vectors first; 2, as P A Pᵀ = (P V) Λ (P V)ᵀ has them last.

    Raises:
        numpy.linalg.LinAlgError: a number is none, or no order helps.
    """
    try:
        return solve(matrices)
    except np.linalg.LinAlgError:
        if matrices.ndim == 2 and not np.isfinite(matrices).all():
            raise
    if matrices.ndim > 2:
        lead, flat = matrices.shape[:-2], matrices.reshape(-1, *matrices.shape[-2:])
        each = [_on_host(solve, matrix, sides) for matrix in flat]
        return tuple(np.stack(part).reshape(*lead, *part[0].shape) for part in zip(*each, strict=True))
    for attempt in range(ORDERS):
        order = np.random.default_rng(attempt).permutation(len(matrices))
        with suppress(np.linalg.LinAlgError):
            found = list(solve(matrices[order] if sides == 1 else matrices[np.ix_(order, order)]))
            found[sides - 1] = found[sides - 1][order.argsort()]
            return tuple(found)
    raise np.linalg.LinAlgError("it did not converge in any order of the rows")


def _embedded(matrices: Array) -> tuple[Array, Array, Array]:
    """By the symmetric matrix of twice the size, which does not square: every digit that NumPy has."""
    xp, (count, m, n) = namespace(matrices), matrices.shape
    both = xp.zeros((count, m + n, m + n))
    both[:, :m, m:], both[:, m:, :m] = matrices, matrices.swapaxes(1, 2)
    values, vectors = eigh(both)
    sigma = xp.maximum(values[:, : -n - 1 : -1], 0.0)
    vectors = vectors[:, :, : -n - 1 : -1] * np.sqrt(2.0)
    return vectors[:, :m], sigma, vectors[:, m:].swapaxes(1, 2)


def _tall(matrices: Array) -> tuple[Array, Array, Array]:
    """(N, m, n), m > n: A = Q Lᵀ of columns brought to length 1, so that only Lᵀ (n, n) is left."""
    xp = namespace(matrices)
    length = xp.sqrt((matrices**2).sum(axis=1))  # (N, n)
    columns = matrices * ratio(1.0, length, length > 0)[:, None, :]
    lower = cholesky(columns.swapaxes(1, 2) @ columns)
    fine = lower.diagonal(axis1=1, axis2=2).min(axis=1) >= EVEN  # NaN is not
    triangle = xp.where(fine[:, None, None], lower, xp.eye(lower.shape[-1]))
    q = solve(triangle, columns.swapaxes(1, 2)).swapaxes(1, 2)
    u, sigma, vt = _embedded(triangle.swapaxes(1, 2) * length[:, None, :])
    u = q @ u
    if len(rest := positions(~fine)):  # columns that depend on each other
        u[rest], sigma[rest], vt[rest] = _embedded(matrices[rest])
    return u, sigma, vt
