"""What a merge kept and lost in one module, from inner products."""

from __future__ import annotations

import numpy as np

from loramerge.backend import Array
from loramerge.gram import Grams, inner
from loramerge.report import Module
from loramerge.results import Fit, Remix

Ranks = tuple[int, ...]  # of the sources in a module


def measure(grams: Grams, remix: Remix, weights: Array, ranks: Ranks) -> list[Module]:
    """The facts of one batch. `grams` are the unweighted units, `remix` acts on the stored factors."""
    P, Q = _in_frame(grams, remix)  # (M, R, k), (M, k, R)
    only = _members(grams, ranks)  # (T, R)
    inners = only @ grams.kernel @ only.T  # (M, T, T)
    high, wide = grams.up @ P, Q @ grams.down
    overlaps = (high * wide.swapaxes(1, 2)).sum(axis=2) @ only.T  # (M, T)
    merged = ((P.swapaxes(1, 2) @ high) * (wide @ Q.swapaxes(1, 2))).sum(axis=(1, 2))
    missed = np.diag(weights[grams.owner]) - P @ Q  # (M, R, R); exact zeros where nothing is missed
    lost = inner(grams, missed, missed) if missed.any() else np.zeros(len(missed))
    wanted = (inners @ weights) @ weights
    wanted, merged, lost = (np.maximum(each, 0.0).tolist() for each in (wanted, merged, lost))
    whole, cut = ([None] * len(missed) if e is None else e.tolist() for e in (remix.whole, remix.cut))
    return [
        Module(label, ranks, wanted[m], merged[m], lost[m], None, overlaps[m], inners[m], whole[m], cut[m])
        for m, label in enumerate(grams.labels)
    ]


def measure_fit(grams: Grams, module: int, fit: Fit, weights: Array, ranks: Ranks) -> Module:
    """The facts of one module of a batch that is merged into factors of its own."""
    assert grams.read is not None
    up, down = grams.read(module)
    only = _members(grams, ranks)  # (T, R)
    inners = only @ grams.kernel[module] @ only.T  # (T, T)
    scale = grams.lift.P[module].diagonal() * grams.lift.Q[module].diagonal()  # (R,)
    overlaps = only @ (scale * ((up.T @ fit.up) * (down @ fit.down.T)).sum(axis=1))  # (T,)
    merged = float(((fit.up.T @ fit.up) * (fit.down @ fit.down.T)).sum())
    wanted = float(weights @ inners @ weights)
    lost = max(wanted - 2 * float(weights @ overlaps) + merged, 0.0)
    label = grams.labels[module]
    return Module(label, ranks, wanted, merged, lost, None, overlaps, inners, fit.whole, fit.cut)


def _members(grams: Grams, ranks: Ranks) -> Array:
    """(T, R) 1 where a unit is of a source."""
    return np.asarray((grams.owner == np.arange(len(ranks))[:, None]).astype(float))


def _in_frame(grams: Grams, remix: Remix) -> tuple[Array, Array]:
    """(P, Q) of a remix of stored factors, for the units of `grams` (their lift is diagonal)."""
    left = grams.lift.P.diagonal(axis1=1, axis2=2)  # (M, R)
    right = grams.lift.Q.diagonal(axis1=1, axis2=2)
    alive = (left != 0) & (right != 0)
    left, right = (np.where(alive, side, np.inf) for side in (left, right))
    return remix.P / left[:, :, None], remix.Q / right[:, None, :]
