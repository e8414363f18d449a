"""Frames: the units that a method starts from, before weights. Other weights do not need this work again.

stored      as in the files, the scale on up: for methods whose published form is bound to raw factors
balanced    each unit split evenly between up and down
halved      balanced, with halves of both Grams at hand
canonical   every source rewritten as its own balanced singular units: only its ΔW matters
spectral    canonical, with halves that have all their digits: for methods that whiten
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from loramerge.arrays.backend import Array, like, namespace, positions
from loramerge.arrays.gram import Grams, balanced, cosines_of, halves, sharp, spectrum, square, triangle
from loramerge.arrays.linalg import cholesky
from loramerge.arrays.remix import Remix

Frame = Literal["stored", "balanced", "halved", "canonical", "spectral"]
# QR of tall factors costs ten times as much as a Gram, so only where a unit is this near to the others
NEAR = 1e-3  # sine of a unit against those before it: below, whitening by a Gram would lose 10 of 16 digits


def framed(grams: Grams, frame: Frame) -> Grams:
    """The units as a method wants them."""
    makers = {"halved": halved, "canonical": canonical, "spectral": spectral}
    return makers[frame](grams) if frame in makers else grams


def halved(grams: Grams) -> Grams:
    """The same units, with the halves of their Grams at hand."""
    return replace(grams, halves=(halves(grams.up), halves(grams.down)))


def canonical(grams: Grams) -> Grams:
    """Every source rewritten as its own balanced singular units: the same ΔW in a gauge of its own.

    Two factorisations of one ΔW become the same units (up to joint signs, and up to rotation where
    singular values coincide). Halves, if there are any, are turned along.
    """
    xp = namespace(grams.up)
    P, Q = xp.zeros_like(grams.up), xp.zeros_like(grams.up)
    noise_up, noise_down = xp.zeros(grams.live.shape), xp.zeros(grams.live.shape)
    for mine in _alike(grams):  # (S, r) the units of sources of one rank: one eigenproblem for all of them
        block = np.arange(len(P))[:, None, None, None], mine[:, :, None], mine[:, None, :]  # (M, S, r, r)
        own_up, own_down = grams.up[block], grams.down[block]
        own = grams.halves and _own_halves(grams.halves, mine)
        P[block], Q[block] = balanced(spectrum(own_up, own_down, own), mine.shape[1])
        noise_up[:, mine] = _rounding(own_up)[..., None] * (P[block] ** 2).sum(axis=-2)
        noise_down[:, mine] = _rounding(own_down)[..., None] * (Q[block] ** 2).sum(axis=-1)
    turned = grams.halves and (grams.halves[0] @ P, grams.halves[1] @ Q.swapaxes(-1, -2))
    up, down = (
        (P.swapaxes(-1, -2) @ grams.up @ P, Q @ grams.down @ Q.swapaxes(-1, -2))
        if turned is None
        else (half.swapaxes(-1, -2) @ half for half in turned)
    )
    # live by energy above rounding, not by σ: the σ of a Gram has a floor of 1e-8
    live = (up.diagonal(axis1=-2, axis2=-1) > noise_up) & (down.diagonal(axis1=-2, axis2=-1) > noise_down)
    lift = Remix(P, Q).after(grams.lift)
    return replace(grams, up=up, down=down, live=live, lift=lift, halves=turned)


def _alike(grams: Grams) -> list[Array]:
    """The positions (S, r) of the units of all sources with r units, for each r."""
    each = [grams.of(source) for source in grams.owners]
    return [
        np.stack([one for one in each if len(one) == rank]) for rank in sorted({len(one) for one in each})
    ]


def _own_halves(pair: tuple[Array, Array], mine: Array) -> tuple[Array, Array]:
    """(M, S, r, r) halves of the Grams of some sources with r units each."""
    up, down = (triangle(half[:, :, mine].swapaxes(1, 2)) for half in pair)
    return up, down


def spectral(grams: Grams) -> Grams:
    """Canonical units, with halves from the factors themselves where Grams have lost digits.

    A Gram squares its units: of a σ at 1e-5 of σ₁ it keeps 6 digits. Adapters that nearly share A are common.
    """
    up, down = halves(grams.up), halves(grams.down)
    near_up, near_down = _near(grams.up), _near(grams.down)
    if high := positions(near_up):
        up[high] = sharp(_measured(grams, high, 0), grams.lift.P[high], grams.up[high])
    if wide := positions(near_down):
        turned = grams.lift.Q[wide].swapaxes(1, 2)
        down[wide] = sharp(_measured(grams, wide, 1), turned, grams.down[wide])
    return canonical(replace(grams, halves=(up, down)))


def _measured(grams: Grams, modules: list[int], side: int) -> Callable[[Array], Array]:
    """For `sharp`: Grams of turned units of some modules, from the factors, one module at hand at a time."""
    assert grams.read is not None
    read = grams.read

    def measure(turns: Array) -> Array:
        each = []
        for turn, module in zip(turns, modules, strict=True):
            factor = like(read(module)[side], turn)
            each.append(square((factor.T if side else factor) @ turn))
        return namespace(turns).stack(each)

    return measure


def _near(gram: Array) -> Array:
    """(M,) whether some unit lies so near to the others that its Gram cannot tell well what is left."""
    half = cholesky(cosines_of(gram)[0])
    return ~(half.diagonal(axis1=1, axis2=2).min(axis=1) >= NEAR)  # so is NaN: not told apart at all


def _rounding(gram: Array) -> Array:
    """How far off an entry of a Gram may be (…)."""
    return np.finfo(np.float64).eps / 2 * gram.trace(axis1=-2, axis2=-1)
