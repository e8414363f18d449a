"""The best low-rank factors of a full matrix of which nothing is known, in a few passes over it."""

from __future__ import annotations

from itertools import count

import numpy as np

from loramerge.algorithms.families.refit import SMALL, whole_svd
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array, like, namespace, ratio
from loramerge.arrays.linalg import eigh
from loramerge.arrays.workers import go_on

LEAST, MOST = 16, 32  # vectors more than asked for, which save passes over the matrix
GUARD = 2  # the share of these, counted from the rank on, whose last σ stands for those which are not seen
LOOKED = 4  # the share of these, from the rank on, that is looked at: they may come to be among the best
BLOCKS = 4  # that a basis has at most, before only its leading part is kept
PARTS, ENOUGH = 8, 256  # rows that are added up in one of a sketch, which keeps so many if there are as many
ROUNDS = 1  # of powers over a sketch, whose own error no more of them would lessen
HEAVY, HEAVIEST = 4.0, 256  # times the mean ‖row‖² of those after it: looked at by itself; at most so many
BLIND = 2.0  # times what is taken for the strongest that is not seen: more than that its mean cannot be
UNSEEN = 1e-6  # of ‖A‖²: less that is not seen is rounding
SHARP = 1e-3  # of the largest σ: what is no smaller is exact from the left, too
EVEN = 1e-3  # the smallest λ of CᵀC over the largest, above which single precision tells it
NOTHING = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-14}  # of a column: no more than rounding


class Sketch:
    """S A (s, in), where S adds up rows of A with signs by chance, eight in one; the rows come in pieces.

    What A does to a few strong directions, it does too, at an eighth of the cost. `squares` are ‖row‖².

    Args:
        shape: (out, in) of the matrix.   rows: of a piece.   like: of its kind.
    """

    def __init__(self, shape: tuple[int, int], rows: int, like: Array) -> None:
        pieces = -(-shape[0] // rows)
        self.rows, self.places = rows, min(pieces, max(pieces // PARTS, -(-ENOUGH // rows)))
        rng = np.random.default_rng(0)
        self._adds, self._turns = rng.random(pieces) < 0.5, rng.integers(rows, size=pieces)
        xp = namespace(like)
        self._high = min(self.places * rows, shape[0])
        self._held = xp.empty((self._high + min(HEAVIEST, shape[0]), shape[1]), like.dtype)
        self.squares = xp.zeros(shape[0], like.dtype)

    @property
    def matrix(self) -> Array:
        """S A."""
        return self._held[: self._high]

    def add(self, piece: Array, top: int) -> None:
        """Counts in the rows from `top` on, all with one sign: no product, so one pass over them.

        Rows near each other, as those of a head, come to different places. What comes to one place is turned
        by chance, so that a pattern that returns after some rows is not always added to itself.
        """
        number, xp, count = top // self.rows, namespace(piece), len(piece)
        self.squares[top : top + count] = xp.vecdot(piece, piece)
        start, turn = number % self.places * self.rows, int(self._turns[number]) % count
        there = self._held[start : start + count]
        add = xp.add if self._adds[number] else xp.subtract
        for here, rows in ((there[turn:], piece[: count - turn]), (there[:turn], piece[count - turn :])):
            if number < self.places:  # the first there
                here[:] = rows
            else:
                add(here, rows, out=here)

    @property
    def energy(self) -> float:
        """‖A‖²."""
        return float(self.squares.astype(np.float64).sum())

    def beside(self, matrix: Array) -> Array:
        """S A, and below it the rows that are far longer than others: of two in one only the sum is seen."""
        xp = namespace(matrix)
        order = xp.argsort(-self.squares)
        found = self.squares[order].astype(np.float64)  # largest first
        rest = found[::-1].cumsum()[::-1] - found
        outlying = xp.flatnonzero(found * xp.arange(len(found) - 1, -1, -1) > HEAVY * rest)
        heavy = order[: int(outlying[outlying < HEAVIEST].max(initial=-1)) + 1]
        self._held[self._high : self._high + len(heavy)] = matrix[heavy]
        return self._held[: self._high + len(heavy)]


def sketched(matrix: Array) -> Sketch:
    """The sketch of a matrix that is there."""
    rows = max(1, len(matrix) // (2 * PARTS))
    sketch = Sketch(matrix.shape, rows, matrix)
    for top in range(0, len(matrix), rows):
        sketch.add(matrix[top : top + rows], top)
    return sketch


def leading(
    matrix: Array, rank: int, excess: float, of_lost: float, sketch: Sketch | None = None
) -> tuple[Array, Array]:
    """The factors U Σ (out, k) and Vᵀ (k, in) nearest to a matrix A (out, in), k = `rank` at most.

    An orthonormal V begins with what is strong in a sketch of A. The factors are the best within A V Vᵀ:
    with θ_i² and z_i of (A V)ᵀ A V they are A V z_i and V z_i. How far AᵀA V z_i leaves the span of V, ρ_i,
    bounds what θ_i² may still gain, by min(ρ_i, ρ_i² / (θ_i² - θ_g²)), if what is not seen is no stronger
    than θ_g. What leaves it is added to V (Davidson's way). The end is u_i = A V z_i / θ_i and u_iᵀA, which
    the bound has cost already, and which are nearer. V has more vectors than are asked for from the
    start, so equal σ are all found. Some more than asked for are looked at, since they gain too and may
    come to be among the best. The others are no stronger than the last of these may become, which is
    known from before it gained; if that is too much, more are looked at.

    Args:
        excess, of_lost: how much more than the best may be lost: of ‖A‖², or of what is lost.
        sketch: of the matrix, if it is known.
    """
    if min(matrix.shape) <= SMALL:
        u, sigma, vt = whole_svd(matrix)
        return (u * sigma)[:, :rank], vt[:rank]
    sketch = sketch or sketched(matrix)
    whole, basis = sketch.energy, Basis(matrix, rank, sketch.beside(matrix))
    for turn in count():
        go_on()
        kept, z, gain, others = basis.look()
        allowed = max(excess * whole, of_lost * max(whole - kept, 0.0))
        if turn < BLOCKS - 1 and basis.blind(whole) and basis.grow_by_rows(sketch.squares):
            continue
        if max(gain, others) <= allowed:
            break
        if not (basis.look_wider() if gain <= allowed else basis.grow(z)):
            break
    if basis.left is not None:
        left, right = _turned(*basis.left)
        return left[:, :rank], right[:rank]
    return basis.product @ z[:, :rank], (basis.v @ z[:, :rank]).T


class Basis:
    """Orthonormal V (in, K) and A V (out, K), which grow by the residuals of what they find.

    Args:
        matrix: A (out, in).   rank: how many units are asked for.   sketch: of it.
    """

    def __init__(self, matrix: Array, rank: int, sketch: Array) -> None:
        self.matrix, self.rank = matrix, rank
        spare = min(max(rank, LEAST), MOST)
        self.block, self.guard = min(rank + spare, *matrix.shape), spare // GUARD
        self.looked = min(max(rank + spare // LOOKED, LEAST), self.block)
        self.v = _strong(sketch, self.block)
        self.product = matrix @ self.v
        self.ceiling: float | None = None  # what the last that is looked at may become, before it has gained
        self.left: tuple[Array, Array] | None = None  # U and AᵀU of what is sharp enough to be told by them

    def look(self) -> tuple[float, Array, float, float]:
        """(‖·‖² of what is found, z (K, K), what it may still gain, the same if others come in its place).

        From the left, u_iᵀA has all of A that u_i sees: more than θ_i z_iᵀVᵀ, by what leaves the span of V.
        """
        xp, wide = namespace(self.matrix), dtypes.wide(self.product)
        first = min(self.looked, self.v.shape[1])
        squares, z = (each[..., ::-1] for each in eigh(wide.T @ wide))
        squares = xp.maximum(squares, 0.0)
        theta = xp.sqrt(squares[:first])
        u = ratio(wide @ z[:, :first], theta, theta > 0).astype(self.matrix.dtype)
        # of A itself, as squares would lose half of the digits; from the left, which BLAS does faster
        image = (xp.ascontiguousarray(u.T) @ self.matrix).T
        self.least = NOTHING[image.dtype] * float(theta[0])
        self.leaving = _without(image, self.v)
        rest = xp.linalg.norm(self.leaving, axis=0).astype(np.float64)
        self.seen = float(squares.sum())
        last = min(self.rank + self.guard, len(squares)) - 1
        self.guarded, rho = float(squares[last]), rest * theta
        gain = _gains(squares[:first], rho, self.guarded)
        if last < first:  # what that one may become itself is known
            gain = _gains(squares[:first], rho, self.guarded + float(gain[last]))
        sharp = theta > SHARP * theta[0]
        self.left = (u[:, sharp], image[:, sharp]) if bool(sharp[: self.rank].all()) else None
        found = squares[:first] + xp.where(sharp, rest**2, 0.0) if self.left else squares[:first]
        may = xp.maximum(squares[:first] + gain, found)
        if self.ceiling is None:
            self.ceiling = float(may.min())
        behind = squares[first:]
        wider = xp.concatenate([may, xp.maximum(behind, self.ceiling)])
        kept, one, other = (self._best(each) for each in (found, xp.concatenate([may, behind]), wider))
        return kept, z.astype(self.matrix.dtype), one - kept, other - kept

    def _best(self, squares: Array) -> float:
        return float(namespace(squares).sort(squares)[::-1][: self.rank].sum())

    def look_wider(self) -> bool:
        """Look at twice as many; false where there are no more."""
        self.looked, before = min(2 * self.looked, self.v.shape[1]), self.looked
        self.ceiling = None
        return self.looked > before

    def blind(self, whole: float) -> bool:
        """Whether what is not seen cannot be as weak as is taken for granted: its mean alone is stronger."""
        unseen = whole * (1 - UNSEEN) - self.seen
        return unseen > BLIND * self.guarded * (min(self.matrix.shape) - self.v.shape[1])

    def grow_by_rows(self, squares: Array) -> bool:
        """Add the rows of A, of these ‖·‖², that have most beside V; false where that is nothing."""
        rest = squares - (self.product * self.product).sum(axis=1)
        most = namespace(rest).argsort(-rest)[: self.block]
        return self._join(_orthonormal(self.matrix[most].T, self.least, self.v))

    def grow(self, z: Array) -> bool:
        """Add what the leading ones leave the span by; false where that is nothing."""
        new = _upright(_without(_upright(self.leaving, self.least), self.v), 0.5)
        if self.v.shape[1] + new.shape[1] > BLOCKS * (most := max(self.block, self.looked)):
            self.v, self.product = (each @ z[:, :most] for each in (self.v, self.product))
        return self._join(new)

    def _join(self, new: Array) -> bool:
        new = new[:, : len(self.v) - self.v.shape[1]]
        if not new.shape[1]:
            return False
        join = namespace(new).concatenate
        self.v = join([self.v, new], axis=1)
        self.product = join([self.product, self.matrix @ new], axis=1)
        return True


def _gains(squares: Array, rho: Array, unseen: float) -> Array:
    """What λ may gain by what leaves the span, if what is not seen is no stronger."""
    gap = squares - unseen
    return namespace(squares).where(gap > rho, ratio(rho**2, gap, gap > rho), rho)


def _strong(sketch: Array, block: int) -> Array:
    """(in, b) orthonormal directions that are strong in a sketch; by chance where it has too few."""
    xp, found = namespace(sketch), _from_left(_chance(sketch, len(sketch), block), sketch)
    for _ in range(ROUNDS):  # on the way, columns that are not quite at right angles do as well
        image = sketch @ found
        found = _from_left(_upright(image, _least(image)), sketch)
    found = _upright(found, 0.5)
    if missing := block - found.shape[1]:
        more = _orthonormal(_chance(sketch, sketch.shape[1], missing), 0.0, found)
        found = xp.concatenate([found, more], axis=1)
    return found


def _from_left(columns: Array, sketch: Array) -> Array:
    found = (namespace(sketch).ascontiguousarray(columns.T) @ sketch).T
    return _upright(found, _least(found))


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
    return _upright(_without(once, others), 0.5)


def _upright(columns: Array, least: float) -> Array:
    """Columns that span the same, nearly at right angles, but for those shorter than `least`."""
    if not columns.shape[1]:
        return columns
    squares, z = eigh(dtypes.wide(columns.T @ columns))
    if float(squares[0]) > max(EVEN * float(squares[-1]), least**2):
        return columns @ (z / namespace(z).sqrt(squares)).astype(columns.dtype)
    wide = dtypes.wide(columns)
    squares, z = eigh(wide.T @ wide)
    kept = squares > least**2
    return (wide @ (z[:, kept] / namespace(wide).sqrt(squares[kept]))).astype(columns.dtype)


def _turned(u: Array, image: Array) -> tuple[Array, Array]:
    """U Σ and Vᵀ of u @ image.T, with u at right angles."""
    xp, wide = namespace(u), dtypes.wide(image)
    squares, z = (each[..., ::-1] for each in eigh(wide.T @ wide))
    sigma = xp.sqrt(squares)
    return ((dtypes.wide(u) @ (z * sigma)).astype(u.dtype), (wide @ (z / sigma)).T.astype(u.dtype))


def _without(columns: Array, others: Array) -> Array:
    return columns - others @ (others.T @ columns) if others.shape[1] else columns
