"""Everything a merge needs to know about its units: two small Gram matrices per module.

    G_up = upᵀ up (R, R)      G_down = down downᵀ (R, R)      ΔW = up @ C @ down

With halves G = HᵀH the core ``H_up C H_downᵀ`` has the singular values of ΔW. All arrays carry a
leading axis over modules, float64; nothing here depends on `in` or `out`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np

from loramerge.arrays.backend import Array, like, namespace, positions, ratio
from loramerge.arrays.linalg import cholesky, eigh, svd
from loramerge.arrays.remix import Remix

Signature = tuple[int, ...]  # the rank of every source in a module; 0 where it has none
FEW = 64  # units, below which a whole SVD costs nothing
STEEP = 1e-4  # σ_k / σ₁, below which squaring would cost digits
FLOOR = 1e-8  # σ/σ₁ below which a direction is the rounding of a Gram
APART = 1e-5  # sine of a unit against those before it, below which Cholesky's digits run out


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Grams:
    """The units of a batch of modules, seen through their inner products.

    Args:
        up: (M, R, R) inner products of the units' columns, scale folded in.
        down: (M, R, R) inner products of the units' rows.
        owner: (R,) which source each unit comes from; on the host, as `weights`.
        live: (M, R) False for units that are zero (padding, an all-zero lora_B).
        lift: how these units are made of the stored factors.
        labels: (M,) names of the modules, the same on every machine.
        halves: (H_up, H_down) of both Grams, if they are at hand: weights only scale their columns.
        weights: (T,) of the sources, for methods that do not fold them into the units.
        sources: (T,) names of the sources, all different.
        read: the stored factors of one module, up (out, R) and down (R, in), for methods that look at
            more than inner products; the units are up @ lift.P and lift.Q @ down.
    """

    up: Array
    down: Array
    owner: Array
    live: Array
    lift: Remix
    labels: tuple[str, ...]
    halves: tuple[Array, Array] | None = None
    weights: Array | None = None
    sources: tuple[str, ...] = ()
    read: Callable[[int], tuple[Array, Array]] | None = None

    @property
    def kernel(self) -> Array:
        """⟨uᵢ, uⱼ⟩_F = (bᵢ·bⱼ)(aᵢ·aⱼ) of the rank-1 units u = b aᵀ (M, R, R)."""
        return self.up * self.down

    @property
    def unit_weights(self) -> Array:
        """(R,) the weight of each unit, where the Grams are; 1 where weights are folded in."""
        if self.weights is None:
            return namespace(self.up).ones(len(self.owner))
        return like(self.weights[self.owner], self.up)

    @property
    def owners(self) -> list[int]:
        """The sources that units come from, in their order."""
        return sorted(set(self.owner.tolist()))  # np.unique would load numpy.ma

    def remix(self, P: Array, Q: Array, whole: Array | None = None, cut: Array | None = None) -> Remix:
        """A remix of these units, as a remix of the stored factors."""
        return Remix(P, Q, whole, cut).after(self.lift)

    def of(self, source: int) -> Array:
        """The positions (r,) of one source's units."""
        return np.flatnonzero(self.owner == source)

    def members(self, sources: int) -> Array:
        """(T, R) 1 where a unit is of a source, where the Grams are."""
        return like((self.owner == np.arange(sources)[:, None]).astype(float), self.up)


class Spectrum(NamedTuple):
    """Thin SVD of the sum of all units: U = up @ left, V = (right @ down)ᵀ.

    Args:
        sigma: (M, R) singular values, largest first; 0 below the rounding of the products.
        left: (M, R, R) and right: (M, R, R): lifts of the singular vectors, zero where sigma is.
    """

    sigma: Array
    left: Array
    right: Array


def cosines_of(gram: Array) -> tuple[Array, Array]:
    """The Gram (…, R, R) of the units brought to length 1, and their lengths (…, R); a zero unit counts as
    orthogonal to all others."""
    xp = namespace(gram)
    length = xp.sqrt(xp.maximum(gram.diagonal(axis1=-2, axis2=-1), 0.0))  # (…, R)
    safe = xp.where(length > 0, length, 1.0)
    cosines = gram / (safe[..., :, None] * safe[..., None, :])
    every = xp.arange(gram.shape[-1])
    cosines[..., every, every] = 1.0
    return cosines, length


def halves(gram: Array) -> Array:
    """H (…, R, R) with G = HᵀH: Cholesky's where the units are well apart, else by eigenvectors.

    The units are first brought to length 1, so that a long one does not drown the digits of the others.
    """
    cosines, length = cosines_of(gram)  # columns of H of zero units become zero here
    flat = cosines.reshape(-1, *gram.shape[-2:])
    return _half(flat).reshape(gram.shape) * length[..., None, :]


def _half(cosines: Array) -> Array:
    """(N, R, R). Each matrix is treated by itself, so the batch it comes in changes no bit."""
    half = cholesky(cosines).swapaxes(-1, -2)
    close = ~(half.diagonal(axis1=-2, axis2=-1).min(axis=-1) >= APART)  # so is NaN: singular
    if close.any():
        half[close] = _eigen_half(cosines[close])
    return half


def _eigen_half(cosines: Array) -> Array:
    """By eigenvectors, for any rank; negative rounding noise becomes 0."""
    xp = namespace(cosines)
    values, vectors = eigh(cosines)
    return xp.sqrt(xp.maximum(values, 0.0))[..., :, None] * vectors.swapaxes(-1, -2)


def triangle(columns: Array) -> Array:
    """H (…, r, r) with HᵀH = XᵀX of tall columns X (…, n, r), with all its digits: the R of a QR.

    No QR takes a batch on a GPU.
    """
    xp = namespace(columns)
    if xp is np:
        return cast(Array, np.linalg.qr(columns, mode="r"))  # its type has both results
    return sharp(lambda turn: square(columns @ turn), xp.eye(columns.shape[-1]), square(columns))


def square(columns: Array) -> Array:
    """XᵀX (…, r, r) of columns X (…, n, r)."""
    return columns.swapaxes(-1, -2) @ columns


def sharp(measure: Callable[[Array], Array], lift: Array, gram: Array) -> Array:
    """H (…, R, R) with HᵀH = (X lift)ᵀ(X lift), all its digits kept, for tall factors X (…, n, R).

    What the Gram sees as directions is first brought to equal length in the factor itself: of the result a
    second Gram loses nothing. As exact as a QR, and three times as fast.

    Args:
        measure: (X C)ᵀ(X C) for given C (…, R, R); the factors may have as many shapes as there are modules.
        gram: (X lift)ᵀ(X lift), as far as it is known.
    """
    xp = namespace(gram)
    cosines, length = cosines_of(gram)
    values, vectors = eigh(cosines)
    scale = xp.sqrt(xp.maximum(values, FLOOR**2))  # (…, R)
    shrink = ratio(1.0, length, length > 0)
    even = measure(lift @ (shrink[..., :, None] * vectors / scale[..., None, :]))
    turned = scale[..., :, None] * vectors.swapaxes(-1, -2)
    return halves(even) @ turned * length[..., None, :]


def spectrum(up: Array, down: Array, halved: tuple[Array, Array] | None = None) -> Spectrum:
    """Singular values and vectors of Σᵢ bᵢ aᵢᵀ from the two Grams (…, R, R).

    With M = H_up H_downᵀ = X Σ Yᵀ the singular vectors are lifted without inverting a half:
    U = up @ (H_downᵀ Y Σ⁻¹), because M y = σ x. Accurate to about 1e-16 of ‖up‖‖down‖ in ΔW and
    1e-8 in a single σ, the price of squaring the factors.
    """
    halved = halved or (halves(up), halves(down))
    x, sigma, yt = svd(halved[0] @ halved[1].swapaxes(-1, -2))
    return _lifted(x, sigma, yt, halved, _noise(up, down))


def leading(up: Array, down: Array, rank: int, halved: tuple[Array, Array] | None = None) -> Spectrum:
    """The first `rank` singular units alone: sigma (…, k), left (…, R, k), right (…, k, R).

    Where these are few, by the eigenvectors V of MᵀM and the SVD of M V (R, k), which is half the work. What
    squaring loses is a rotation towards σ of equal size, below 1e-12 of σ₁ as long as σ_k is above 1e-4 of
    it; the other modules take the whole SVD.
    """
    size = up.shape[-1]
    if size < FEW or 3 * rank > size:
        parts = spectrum(up, down, halved)
        return Spectrum(parts.sigma[..., :rank], parts.left[..., :rank], parts.right[..., :rank, :])
    halved = halved or (halves(up), halves(down))
    core = halved[0] @ halved[1].swapaxes(-1, -2)  # (…, R, R)
    v = eigh(core.swapaxes(-1, -2) @ core)[1][..., : -rank - 1 : -1]  # (…, R, k)
    x, sigma, zt = svd(core @ v, full_matrices=False)
    yt = zt @ v.swapaxes(-1, -2)
    steep = positions((sigma[..., -1] <= STEEP * sigma[..., 0]).reshape(-1))
    if steep:  # all of them at once
        some = np.unravel_index(steep, sigma.shape[:-1])
        whole, values, rows = svd(core[some])
        x[some], sigma[some], yt[some] = whole[:, :, :rank], values[:, :rank], rows[:, :rank]
    return _lifted(x, sigma, yt, halved, _noise(up, down))


def _lifted(x: Array, sigma: Array, yt: Array, halved: tuple[Array, Array], noise: Array) -> Spectrum:
    """Singular vectors of M = H_up H_downᵀ as combinations of the units."""
    xp = namespace(x)
    sigma = xp.where(sigma > noise[..., None], sigma, 0.0)
    inverse = xp.where(sigma > 0, 1.0 / xp.where(sigma > 0, sigma, 1.0), 0.0)
    left = (halved[1].swapaxes(-1, -2) @ yt.swapaxes(-1, -2)) * inverse[..., None, :]
    right = inverse[..., :, None] * (x.swapaxes(-1, -2) @ halved[0])
    return Spectrum(sigma, left, right)


def _noise(up: Array, down: Array) -> Array:
    """Below this a singular value is rounding of the largest units (…)."""
    xp = namespace(up)
    trace = up.trace(axis1=-2, axis2=-1) * down.trace(axis1=-2, axis2=-1)
    return up.shape[-1] * np.finfo(np.float64).eps * xp.sqrt(trace)


def balanced(parts: Spectrum, rank: int) -> tuple[Array, Array]:
    """(P, Q) of the leading `rank` singular units, √σ on either side: (…, R, k) and (…, k, R)."""
    xp = namespace(parts.sigma)
    root = xp.sqrt(parts.sigma[..., :rank])
    return parts.left[..., :rank] * root[..., None, :], root[..., :, None] * parts.right[..., :rank, :]


def weigh(grams: Grams, weights: Array, even: bool = False) -> Grams:
    """The same units, each multiplied by its source's weight (T,), or (M, T) if modules differ: on the up
    side, or `even`: √|w| on both sides and the sign on up, which lengthens a unit without turning it."""
    xp = namespace(grams.up)
    weight = xp.asarray(weights, dtype=np.float64)[..., grams.owner]  # (R,) or (M, R)
    right = xp.sqrt(xp.abs(weight)) if even else xp.where(weight == 0, 0.0, 1.0)  # a weight of 0 removes both
    left = xp.sign(weight) * right if even else weight
    wide, high = left[..., None, :], right[..., :, None]  # along columns, along rows
    lift = Remix(grams.lift.P * wide, high * grams.lift.Q)
    up, down = left[..., :, None] * grams.up * wide, high * grams.down * right[..., None, :]
    own = grams.halves and (grams.halves[0] * wide, grams.halves[1] * right[..., None, :])
    return replace(grams, up=up, down=down, lift=lift, live=grams.live & (weight != 0), halves=own)


def inner(grams: Grams, first: Array, second: Array) -> Array:
    """⟨up C₁ down, up C₂ down⟩_F (M,) for cores (M, R, R), in the frame of `grams`."""
    return ((grams.up @ first @ grams.down) * second).sum(axis=(-2, -1))
