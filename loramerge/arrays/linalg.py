"""Factorisations of batches of small matrices, each by itself, on the host and on a GPU.

On the host they are NumPy's. On a GPU only two routines of the libraries take a batch in one launch: Cholesky
and the symmetric eigenproblem. The others loop over the matrices, one launch each. So there all is made of
these two. What they give is checked, because CuPy does not look at the error codes of its solvers.

    SVD of A        eigenvectors (x, y)/√2 of  [0 A; Aᵀ 0]  to the eigenvalues σ, largest first
"""

from __future__ import annotations

import warnings

import numpy as np

from loramerge.arrays.backend import Array, host, like, namespace, positions, ratio

RESIDUAL = 1e-10  # of A = V Λ Vᵀ and of A = L Lᵀ, above which factors are wrong, not rounded
EVEN = (
    0.1  # sine of a column against those before it, above which A = Q Lᵀ by Cholesky loses two digits at most
)


def cholesky(matrices: Array) -> Array:
    """Lower factors (N, R, R), each by itself; NaN where a matrix is not positive definite.

    NumPy refuses the whole batch for one such matrix. CuPy leaves half of a factor there, which does not give
    the matrix back.
    """
    xp = namespace(matrices)
    if xp is np:
        return _numpy_cholesky(matrices)
    made = xp.linalg.cholesky(matrices)
    off = xp.abs(made @ made.swapaxes(-1, -2) - matrices).max(axis=(-2, -1))
    good = off <= RESIDUAL * xp.abs(matrices).max(axis=(-2, -1))  # NaN is not
    good &= (made.diagonal(axis1=-2, axis2=-1) > 0).all(axis=-1)
    return xp.where(good[:, None, None], made, np.nan)


def _numpy_cholesky(matrices: Array) -> Array:
    try:
        return np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        if len(matrices) == 1:
            return np.full_like(matrices, np.nan)
        return np.concatenate([_numpy_cholesky(matrices[n : n + 1]) for n in range(len(matrices))])


def eigh(matrices: Array) -> tuple[Array, Array]:
    """Eigenvalues (…, R), smallest first, and eigenvectors (…, R, R) of symmetric matrices."""
    xp = namespace(matrices)
    if xp is np:
        return np.linalg.eigh(matrices)
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    values, vectors = xp.linalg.eigh(flat)
    for wrong in positions(_wrong(flat, values, vectors)):
        values[wrong], vectors[wrong] = _again(flat[wrong])
    return values.reshape(matrices.shape[:-1]), vectors.reshape(matrices.shape)


def _wrong(matrices: Array, values: Array, vectors: Array) -> Array:
    """(N,) whether these are no eigenvectors. NaN is wrong too, unless the matrix has it."""
    xp = namespace(matrices)
    off = xp.abs(vectors * values[:, None, :] @ vectors.swapaxes(1, 2) - matrices).max(axis=(1, 2))
    size = xp.abs(matrices).max(axis=(1, 2))
    return xp.isfinite(size) & ~(off <= RESIDUAL * matrices.shape[-1] * size)


def _again(matrix: Array) -> tuple[Array, Array]:
    """One matrix (R, R) by itself, which takes another routine; if that fails too, on the host."""
    values, vectors = namespace(matrix).linalg.eigh(matrix)
    where = "one by one"
    if bool(_wrong(matrix[None], values[None], vectors[None]).any()):
        where = "on the host"
        values, vectors = (like(each, matrix) for each in np.linalg.eigh(host(matrix)))
    warnings.warn(
        f"The GPU's batched eigensolver failed on a matrix of {len(matrix)} rows, which was solved {where}.",
        RuntimeWarning,
        stacklevel=2,
    )
    return values, vectors


def svd(matrices: Array, full_matrices: bool = True) -> tuple[Array, Array, Array]:
    """U (…, m, k), σ (…, k) largest first and Vᵀ (…, k, n), k = min(m, n).

    `full_matrices` is for square matrices, where it changes nothing, and for the host. On a GPU the vectors
    of a σ that is rounding have any length, where NumPy completes the bases.
    """
    if namespace(matrices) is np:
        return np.linalg.svd(matrices, full_matrices=full_matrices)
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
        return np.linalg.svd(matrices, compute_uv=False)
    return svd(matrices)[1]


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
    q = xp.linalg.solve(triangle, columns.swapaxes(1, 2)).swapaxes(1, 2)
    u, sigma, vt = _embedded(triangle.swapaxes(1, 2) * length[:, None, :])
    u = q @ u
    for m in positions(~fine):  # columns that depend on each other
        one = _embedded(matrices[m : m + 1])
        u[m], sigma[m], vt[m] = (each[0] for each in one)
    return u, sigma, vt
