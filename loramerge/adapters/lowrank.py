"""One LoRA update as a value that knows its algebra: ΔW = scale · up @ down."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.arrays.linalg import svd
from loramerge.charts.facts import facts_html


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class LowRank:
    """ΔW = scale · up @ down, kept as its factors.

    Args:
        up: (out, rank), PEFT's ``lora_B``, kohya's ``lora_up``.
        down: (rank, in), PEFT's ``lora_A``, kohya's ``lora_down``.
        scale: ``alpha / rank`` or ``alpha / √rank``, in float64 until a writer folds it.

    Raises:
        ValueError: the factors do not share a rank, or are not matrices.

    >>> half = LowRank(np.array([[1.0], [2.0]]), np.array([[3.0, 4.0]]), scale=0.5)
    >>> (half + half).dense()
    array([[3., 4.],
           [6., 8.]])
    """

    up: Array
    down: Array
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.up.ndim != 2 or self.down.ndim != 2 or self.up.shape[1] != self.down.shape[0]:
            raise ValueError(
                f"up {self.up.shape} and down {self.down.shape} must be (out, rank) and (rank, in)"
            )

    def __repr__(self) -> str:
        (outs, rank), ins = self.up.shape, self.down.shape[1]
        return f"<LowRank {outs}×{ins}: rank {rank}, scale {self.scale:g}>"

    def _repr_html_(self) -> str:
        size, kinds = "×".join(map(str, self.shape)), f"{self.up.dtype}, {self.down.dtype}"
        return facts_html({"out×in": size, "rank": self.rank, "scale": self.scale, "up, down": kinds})

    @property
    def rank(self) -> int:
        """How many rank-1 units the factors hold (not the numerical rank)."""
        return int(self.up.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of ΔW."""
        return int(self.up.shape[0]), int(self.down.shape[1])

    def __add__(self, other: LowRank) -> LowRank:
        """The exact sum, in float64: units side by side, ranks add."""
        up = np.concatenate([_wide(self.up) * self.scale, _wide(other.up) * other.scale], axis=1)
        return LowRank(up, np.concatenate([_wide(self.down), _wide(other.down)]))

    def __mul__(self, factor: float) -> LowRank:
        """The same factors, another scale: nothing is rounded."""
        return LowRank(self.up, self.down, self.scale * factor)

    __rmul__ = __mul__

    def __neg__(self) -> LowRank:
        return self * -1.0

    def __sub__(self, other: LowRank) -> LowRank:
        return self + -other

    def dense(self) -> Array:
        """ΔW as a float64 matrix (out, in). The only place where a big matrix is born."""
        return np.asarray(self.scale * (_wide(self.up) @ _wide(self.down)))

    def inner(self, other: LowRank) -> float:
        """⟨ΔW₁, ΔW₂⟩_F from the factors: sum of (up₁ᵀ up₂) ∘ (down₁ down₂ᵀ)."""
        return _times(*_inner(self, other))

    def norm(self) -> float:
        """‖ΔW‖_F, from the Grams: exact to about 1e-8 of the largest unit."""
        square, power = _inner(self, self)
        return _times(math.sqrt(max(square, 0.0)), power // 2)

    def compress(self, rank: int) -> LowRank:
        """The best approximation of this rank (Eckart-Young), by QR of the factors and a small SVD.

        >>> a = LowRank(np.eye(3), np.diag([3.0, 2.0, 1.0]))
        >>> a.compress(2).dense().diagonal().round(12)
        array([3., 2., 0.])
        """
        left, core_up = np.linalg.qr(_wide(self.up) * self.scale)
        right, core_down = np.linalg.qr(_wide(self.down).T)
        u, sigma, vt = svd(core_up @ core_down.T, full_matrices=False)
        root = np.sqrt(sigma[:rank])
        return LowRank(left @ (u[:, :rank] * root), (root[:, None] * vt[:rank]) @ right.T)


def _inner(one: LowRank, two: LowRank) -> tuple[float, int]:
    """x and n with ⟨ΔW₁, ΔW₂⟩_F = x · 2ⁿ: products of factors may leave float64 where no update does."""
    (up1, down1, scale1), power1 = _near_one(one)
    (up2, down2, scale2), power2 = _near_one(two)
    product = ((up1.T @ up2) * (down1 @ down2.T)).sum()
    return scale1 * scale2 * float(product), power1 + power2


def _near_one(update: LowRank) -> tuple[tuple[Array, Array, float], int]:
    """Both factors, with entries up to 1, and the scale, without a power of two that they have together."""
    (up, first), (down, second) = (_without_power(_wide(factor)) for factor in (update.up, update.down))
    scale, third = math.frexp(update.scale)
    return (up, down, scale), first + second + third


def _without_power(factor: Array) -> tuple[Array, int]:
    power = int(np.frexp(abs(factor).max(initial=0.0))[1])
    return np.ldexp(factor, -power), power


def _times(value: float, power: int) -> float:
    """value · 2ⁿ; infinite where that is beyond float64."""
    try:
        return math.ldexp(value, power)
    except OverflowError:
        return math.copysign(math.inf, value)


def _wide(factor: Array) -> Array:
    with np.errstate(invalid="ignore"):  # a signalling NaN would warn; who reads it tells of every NaN
        return np.asarray(factor, dtype=np.float64)
