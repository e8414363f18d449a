"""What a merge kept and lost in one module, from inner products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.lowrank import LowRank
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array, host, like, namespace
from loramerge.arrays.gram import Grams, inner
from loramerge.arrays.remix import Fit, Remix
from loramerge.merge.report import PAIRS, Module
from loramerge.sources.units import Units

Ranks = tuple[int, ...]  # of the sources in a module
SMALL = 1e-4  # share of the norms, below which a loss is not taken from their difference


def measure(grams: Grams, remix: Remix, weights: Array, ranks: Ranks) -> list[Module]:
    """The facts of one batch. `grams` are the unweighted units, `remix` acts on the stored factors.

    A report is for people, so its numbers come down to the host, a few for each module.
    """
    P, Q = _in_frame(grams, remix)  # (M, R, k), (M, k, R)
    weights = like(weights, P)
    only = grams.members(len(ranks))  # (T, R)
    inners, wanted = _pairs(grams, only, weights)
    high, wide = grams.up @ P, Q @ grams.down
    overlaps = (high * wide.swapaxes(1, 2)).sum(axis=2) @ only.T  # (M, T)
    merged = ((P.swapaxes(1, 2) @ high) * (wide @ Q.swapaxes(1, 2))).sum(axis=(1, 2))
    lost = wanted - 2 * (overlaps @ weights) + merged
    near = lost < SMALL * (wanted + merged)
    lost[near] = _missed(grams, P[near], Q[near], weights, near)
    wanted, merged, lost = (np.maximum(host(each), 0.0).tolist() for each in (wanted, merged, lost))
    whole, cut = ([None] * len(P) if e is None else host(e).tolist() for e in (remix.whole, remix.cut))
    named = {name: host(each) for name, each in remix.facts.items()}
    facts = [{name: float(each[m]) for name, each in named.items()} for m in range(len(P))]
    found = host(overlaps), host(inners)
    each = zip(grams.labels, wanted, merged, lost, *found, whole, cut, facts, strict=True)
    return [
        Module(label, ranks, asked, made, missing, None, overlap, inner, total, rest, facts=told)
        for label, asked, made, missing, overlap, inner, total, rest, told in each
    ]


def _pairs(grams: Grams, only: Array, weights: Array) -> tuple[Array, Array]:
    """(M, T, T) inner products of the sources, or (M, T) their squares if they are many; (M,) of the sum."""
    if len(weights) <= PAIRS:
        inners = only @ grams.kernel @ only.T
        return inners, (inners @ weights) @ weights
    own = grams.owner[:, None] == grams.owner[None, :]
    each = weights @ only  # (R,)
    return (grams.kernel * own).sum(axis=2) @ only.T, (grams.kernel @ each) @ each


def _missed(grams: Grams, P: Array, Q: Array, weights: Array, some: Array) -> Array:
    """‖Σ w_t ΔW_t − merge‖² of some modules, from the difference itself: subtracting norms loses digits."""
    xp = namespace(P)
    missed = xp.diag(weights[grams.owner]) - P @ Q  # (m, R, R); exact zeros where nothing is missed
    if not missed.any():
        return xp.zeros(len(missed))
    return inner(replace(grams, up=grams.up[some], down=grams.down[some]), missed, missed)


def measure_fit(grams: Grams, module: int, fit: Fit, weights: Array, ranks: Ranks) -> Module:
    """The facts of one module of a batch that is merged into factors of its own."""
    assert grams.read is not None
    up, down = grams.read(module)
    only, kernel, scale = _of_module(grams, module, ranks)
    inners, wanted = _pairs_of(only, kernel, weights)
    overlaps = only @ (scale * ((up.T @ fit.up) * (down @ fit.down.T)).sum(axis=1))  # (T,)
    merged = float(((fit.up.T @ fit.up) * (fit.down @ fit.down.T)).sum())
    lost = max(wanted - 2 * float(weights @ overlaps) + merged, 0.0)
    label = grams.labels[module]
    return Module(
        label, ranks, wanted, merged, lost, None, overlaps, inners, fit.whole, fit.cut, facts=fit.facts
    )


def _pairs_of(only: Array, kernel: Array, weights: Array) -> tuple[Array, float]:
    """(T, T) of one module, or (T,) if the sources are many; and that of the sum."""
    if len(only) <= PAIRS:
        inners = only @ kernel @ only.T
        return inners, float(weights @ inners @ weights)
    each = weights @ only
    return ((only.T @ only) * kernel).sum(axis=1) @ only.T, float(each @ kernel @ each)


def _of_module(grams: Grams, module: int, ranks: Ranks) -> tuple[Array, Array, Array]:
    """Owners (T, R), kernel (R, R) and scales (R,) of one module, on the host: fits to tiles of ΔW are made
    there."""
    scale = grams.lift.P[module].diagonal() * grams.lift.Q[module].diagonal()
    return host(grams.members(len(ranks))), host(grams.kernel[module]), host(scale)


def _in_frame(grams: Grams, remix: Remix) -> tuple[Array, Array]:
    """(P, Q) of a remix of stored factors, for the units of `grams` (their lift is diagonal)."""
    left = grams.lift.P.diagonal(axis1=1, axis2=2)  # (M, R)
    right = grams.lift.Q.diagonal(axis1=1, axis2=2)
    alive = (left != 0) & (right != 0)
    left, right = (namespace(side).where(alive, side, np.inf) for side in (left, right))
    return remix.P / left[:, :, None], remix.Q / right[:, None, :]


def measure_dense(grams: Grams, module: int, matrix: Array, weights: Array, ranks: Ranks) -> Module:
    """The facts of one module of a batch that is merged into a full matrix (out, in)."""
    assert grams.read is not None
    up, down = grams.read(module)
    only, kernel, scale = _of_module(grams, module, ranks)
    inners, wanted = _pairs_of(only, kernel, weights)
    reached = up.T.astype(matrix.dtype) @ matrix  # (R, in)
    overlaps = only @ (scale * np.einsum("ri,ri->r", reached, down))  # (T,)
    merged = float(np.einsum("ij,ij->i", matrix, matrix).sum(dtype=np.float64))
    lost = max(wanted - 2 * float(weights @ overlaps) + merged, 0.0)
    return Module(grams.labels[module], ranks, wanted, merged, lost, None, overlaps, inners)


def recount(
    module: Module, adapters: Sequence[Adapter], target: Target, merged: tuple[Array, Array]
) -> Module:
    """The facts of a folded module with each source counted by itself again.

    Args:
        merged: up' (out, k) and down' (k, in) of the merge.
    """
    present = [(t, a[target]) for t, a in enumerate(adapters) if target in a.slots]
    made, size, many = LowRank(*merged), len(adapters), len(adapters) > PAIRS
    overlaps, inners = np.zeros(size), np.zeros(size if many else (size, size))
    for t, update in present:
        overlaps[t] = update.inner(made)
        if many:
            inners[t] = update.inner(update)
        for u, other in () if many else present:
            if u >= t:
                inners[t, u] = inners[u, t] = update.inner(other)
    ranks = tuple(a.slots[target].rank if target in a.slots else 0 for a in adapters)
    return replace(module, ranks=ranks, overlaps=overlaps, inners=inners)


def _without_last(inners: Array) -> Array:
    return inners[:-1] if inners.ndim == 1 else inners[:-1, :-1]


def unfolded(facts: list[Module], units: Units, adapters: Sequence[Adapter], remix: Remix) -> list[Module]:
    """The facts of a batch of folded sources, in terms of the original ones."""
    if not units.signature[-1]:  # nothing is folded in these modules
        return [
            replace(f, ranks=f.ranks[:-1], overlaps=f.overlaps[:-1], inners=_without_last(f.inners))
            for f in facts
        ]

    def made(module: int) -> tuple[Array, Array]:
        up, down = units.remix(module, remix)
        return host(up), host(down)

    pairs = enumerate(zip(facts, units.targets, strict=True))
    return [recount(fact, adapters, target, made(m)) for m, (fact, target) in pairs]
