"""The best low-rank factors of a full matrix of which nothing is known, in a few passes over it."""

from __future__ import annotations

import numpy as np

from loramerge.algorithms.families.refit import SMALL, energy, whole_svd
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array, like, namespace, ratio
from loramerge.arrays.workers import go_on

LEAST, MOST = 8, 32  # vectors more than asked for, which save passes over the matrix
GUARD = 4  # the share of these, counted from the rank on, whose last σ stands for those which are not seen
BLOCKS = 4  # that a basis has at most, before only its leading part is kept
PARTS = 4  # rows that are added up in one of a sketch
ROUNDS = 2  # of powers over a sketch
NOTHING = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-14}  # of a column: no more than rounding


class Sketch:
    """S A (s, in), where S adds up rows of A with signs by chance, four in one; the rows come in pieces.

    What A does to a few strong directions, it does too, at a quarter of the cost.

    Args:
        shape: (out, in) of the matrix.   rows: of a piece.   like: of its kind.
    """

    def __init__(self, shape: tuple[int, int], rows: int, like: Array) -> None:
        self.rows, self.places = rows, max(1, -(-shape[0] // rows) // PARTS)
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (shape[0], 1))
        xp = namespace(like)
        self.signs = xp.asarray(signs, like.dtype)
        self.matrix = xp.zeros((min(self.places * rows, shape[0]), shape[1]), like.dtype)
        self._piece = xp.empty((rows, shape[1]), like.dtype)

    def add(self, piece: Array, top: int) -> None:
        """Counts in the rows from `top` on."""
        start = top // self.rows % self.places * self.rows
        signed, there = self._piece[: len(piece)], self.matrix[start : start + len(piece)]
        xp = namespace(piece)
        xp.multiply(piece, self.signs[top : top + len(piece)], out=signed)
        xp.add(there, signed, out=there)


def sketched(matrix: Array) -> Array:
    """The sketch of a matrix that is there."""
    rows = max(1, len(matrix) // (2 * PARTS))
    sketch = Sketch(matrix.shape, rows, matrix)
    for top in range(0, len(matrix), rows):
        sketch.add(matrix[top : top + rows], top)
    return sketch.matrix


def leading(
    matrix: Array, rank: int, excess: float, of_lost: float, sketch: Array | None = None
) -> tuple[Array, Array]:
    """The factors U Σ (out, k) and Vᵀ (k, in) nearest to a matrix A (out, in), k = `rank` at most.

    An orthonormal V begins with what is strong in a sketch of A. The factors are the best within A V Vᵀ:
    with θ_i² and z_i of (A V)ᵀ A V they are A V z_i and V z_i. How far AᵀA V z_i leaves the span of V, ρ_i,
    bounds what θ_i² may still gain, by min(ρ_i, ρ_i² / (θ_i² - θ_g²)), if what is not seen is no stronger
    than θ_g. What leaves it is added to V (Davidson's way). V has more vectors than are asked for from the
    start, so equal σ are all found.

    Args:
        excess, of_lost: how much more than the best may be lost: of ‖A‖², or of what is lost.
        sketch: of the matrix, if it is known.
    """
    if min(matrix.shape) <= SMALL:
        u, sigma, vt = whole_svd(matrix)
        return (u * sigma)[:, :rank], vt[:rank]
    whole = energy(matrix)
    basis = Basis(matrix, rank, sketched(matrix) if sketch is None else sketch)
    while True:
        go_on()
        squares, z, gain = basis.look()
        lost = max(whole - float(squares[:rank].sum()), 0.0)
        if gain <= max(excess * whole, of_lost * lost) or not basis.grow(z):
            break
    return basis.product @ z[:, :rank], (basis.v @ z[:, :rank]).T


class Basis:
    """Orthonormal V (in, K) and A V (out, K), which grow by the residuals of what they find.

    Args:
        matrix: A (out, in).   rank: how many units are asked for.   sketch: of it.
    """

    def __init__(self, matrix: Array, rank: int, sketch: Array) -> None:
        self.matrix, self.rank, self.most = matrix, rank, min(matrix.shape)
        spare = min(max(rank, LEAST), MOST)
        self.block, self.guard = min(rank + spare, self.most), spare // GUARD
        self.v = _strong(sketch, self.block)
        self.product = matrix @ self.v

    def look(self) -> tuple[Array, Array, float]:
        """(θ² of all, z (K, K), what the leading ones may still gain)."""
        xp, wide = namespace(self.matrix), dtypes.wide(self.product)
        squares, z = (each[..., ::-1] for each in np.linalg.eigh(wide.T @ wide))
        z, theta = z.astype(self.matrix.dtype), xp.sqrt(xp.maximum(squares, 0.0))
        first = max(self.rank, LEAST)
        u = ratio(self.product @ z[:, :first], theta[:first], theta[:first] > 0).astype(z.dtype)
        # of A itself, as squares would lose half of the digits; from the left, which BLAS does faster
        image = (xp.ascontiguousarray(u.T) @ self.matrix).T
        self.least = NOTHING[image.dtype] * float(theta[0])
        self.leaving = _without(_without(image, self.v), self.v)
        rho = xp.linalg.norm(self.leaving[:, : self.rank], axis=0).astype(np.float64) * theta[: self.rank]
        gap = squares[: self.rank] - squares[min(self.rank + self.guard, len(squares)) - 1]
        gain = xp.where(gap > rho, ratio(rho**2, gap, gap > rho), rho)
        return squares, z, float(gain.sum())

    def grow(self, z: Array) -> bool:
        """Add what the leading ones leave the span by; false where that is nothing."""
        new = _orthonormal(self.leaving, self.least, self.v)[:, : self.most - self.v.shape[1]]
        if not new.shape[1]:
            return False
        if self.v.shape[1] + new.shape[1] > BLOCKS * self.block:
            self.v, self.product = (each @ z[:, : self.block] for each in (self.v, self.product))
        join = namespace(new).concatenate
        self.v = join([self.v, new], axis=1)
        self.product = join([self.product, self.matrix @ new], axis=1)
        return True


def _strong(sketch: Array, block: int) -> Array:
    """(in, b) orthonormal directions that are strong in a sketch; by chance where it has too few."""
    xp, found = namespace(sketch), _chance(sketch, len(sketch), block)
    for turn in range(ROUNDS + 1):  # on the way, columns that are not quite at right angles do as well
        image = sketch @ found if turn else found
        image = _upright(image, _least(image))
        found = (xp.ascontiguousarray(image.T) @ sketch).T
        found = _upright(found, _least(found))
    found = _upright(found, 0.5)
    if missing := block - found.shape[1]:
        more = _orthonormal(_chance(sketch, sketch.shape[1], missing), 0.0, found)
        found = xp.concatenate([found, more], axis=1)
    return found


def _chance(sketch: Array, count: int, wide: int) -> Array:
    """(count, wide) random numbers of the kind of a sketch."""
    return like(np.random.default_rng(0).standard_normal((count, wide)).astype(sketch.dtype), sketch)


def _least(columns: Array) -> float:
    """A column no longer than this is no more than rounding."""
    return NOTHING[columns.dtype] * _longest(columns)


def _longest(columns: Array) -> float:
    return float(namespace(columns).linalg.norm(columns, axis=0).max())


def _orthonormal(columns: Array, least: float, others: Array) -> Array:
    """Orthonormal columns that span the same beside what others span, but for those shorter than `least`."""
    once = _upright(_without(columns, others), least)
    return _without(_upright(_without(once, others), 0.5), others)


def _upright(columns: Array, least: float) -> Array:
    """Columns that span the same, nearly at right angles, but for those shorter than `least`."""
    wide = dtypes.wide(columns)
    squares, z = np.linalg.eigh(wide.T @ wide)
    kept = squares > least**2
    return (wide @ (z[:, kept] / namespace(wide).sqrt(squares[kept]))).astype(columns.dtype)


def _without(columns: Array, others: Array) -> Array:
    return columns - others @ (others.T @ columns) if others.shape[1] else columns
