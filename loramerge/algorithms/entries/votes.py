"""Small parts of elementwise rules, on entries of T sources side by side.

    trim    keep the entries of middle or large size
    drop    keep entries by chance, and make up for the others
    elect   the sign of each entry by a vote of the sources
    agree   which sources have that sign
    mean    the mean of those that agree

Arrays have a leading axis over sources, x (T, …); weights are (T,). Sources of weight 0 are left out before.
Sums run over the sources in a loop: each entry then has the same bits in whatever tile or batch it comes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from loramerge.arrays.backend import Array

TIE = 1e-12  # share of all votes, below which a majority is rounding
Divisor = Literal["weight", "count", "none"]


def trim(x: Array, ranking: Array, low: Array, high: Array) -> Array:
    """The entries whose `ranking` r has low <= r < high; 0 for the others. All of equal size go together.

    Args:
        ranking: (S, …) sizes, S = T or 1 for all sources together.   low, high: shaped to fit.

    >>> x = np.array([[1.0, -3.0, 2.0]])
    >>> trim(x, abs(x), np.array([[2.0]]), np.array([[np.inf]]))
    array([[ 0., -3.,  2.]])
    """
    kept = ranking >= low
    if np.isfinite(high).any():
        kept &= ranking < high
    return np.multiply(x, kept)


def drop(x: Array, chance: Array, density: float | Array, rescale: bool) -> Array:
    """Keep an entry where its `chance`, uniform in [0, 1), is below `density`; `rescale` divides by that.

    >>> drop(np.array([[1.0, 2.0]]), np.array([[0.7, 0.2]]), 0.5, rescale=True)
    array([[0., 4.]])
    """
    kept = (chance < np.asarray(density, np.float32)).astype(
        x.dtype
    )  # float32 whatever x is: the same entries
    if rescale:
        kept /= np.asarray(density, x.dtype)
    return np.multiply(kept, x, out=kept)


def weighted_sum(x: Array, weights: Array) -> Array:
    """Σ_t w_t x_t (…).

    >>> weighted_sum(np.array([[1.0, 2.0], [10.0, 20.0]]), np.array([1.0, 0.5]))
    array([ 6., 12.])
    """
    total = x[0] * x.dtype.type(weights[0])
    for one, weight in zip(x[1:], weights[1:], strict=True):
        total += one * x.dtype.type(weight) if weight != 1 else one
    return total


def elect(x: Array, weights: Array) -> Array:
    """-1, 0 or 1 for each entry (…): the sign of Σ_t w_t x_t. Where the votes cancel, nobody is elected.

    >>> elect(np.array([[1.0, 2.0, 5.0], [-3.0, 1.0, -5.0]]), np.ones(2))
    array([-1.,  1.,  0.])
    """
    votes = weighted_sum(x, weights)
    if x.dtype == np.float64:  # where updates cancel, products and bases leave a trace of rounding
        votes[np.abs(votes) <= TIE * weighted_sum(np.abs(x), np.abs(weights))] = 0.0
    return np.sign(votes)


def turn(x: Array, weights: Array) -> Array:
    """The entries (T, …) with the sign that the weights give them."""
    if (weights > 0).all():
        return x
    return x * np.sign(weights).reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)


def agree(x: Array, elected: Array) -> Array:
    """(T, …) 1 where an entry has the elected sign, in the type of x.

    >>> agree(np.array([[1.0, 2.0], [-3.0, 0.0]]), np.array([-1.0, 1.0]))
    array([[0., 1.],
           [1., 0.]])
    """
    return (x * elected > 0).astype(x.dtype)


def mean(x: Array, agreeing: Array, weights: Array, divisor: Divisor) -> Array:
    """Σ w x over those that agree (…), divided by Σ |w| of them, by their count, or not at all.

    >>> x, both = np.array([[4.0], [1.0]]), np.ones((2, 1))
    >>> [mean(x, both, np.array([1.0, 3.0]), how).item() for how in ("weight", "count", "none")]
    [1.75, 3.5, 7.0]
    """
    total = weighted_sum(x * agreeing, weights)
    if divisor == "none":
        return total
    shares = np.abs(weights) if divisor == "weight" else np.ones(len(weights))
    share = weighted_sum(agreeing, shares)
    return np.divide(total, share, out=total, where=share > 0)


def strongest(x: Array, elected: Array) -> Array:
    """The largest entry of the elected sign (…).

    >>> strongest(np.array([[1.0, -2.0], [3.0, -1.0]]), np.array([1.0, -1.0]))
    array([ 3., -2.])
    """
    top = x[0] * elected
    for one in x[1:]:
        np.maximum(top, one * elected, out=top)
    return np.maximum(top, 0, out=top) * elected


def chances(x: Array, density: float, spread: float, columns: Array) -> Array:
    """(…, a, b) probability to be kept, by rank within the row: density + spread for the largest entry,
    linear down to density - spread for the `columns`-th. Of entries of one size the first counts as larger.

    >>> chances(np.array([[1.0, -3.0, 2.0]]), 0.5, 0.25, np.array(3)).round(3)
    array([[0.25, 0.75, 0.5 ]])
    """
    order = np.argsort(-np.abs(x), axis=-1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(x.shape[-1]), x.shape), axis=-1)
    step = 1 / np.maximum(np.asarray(columns) - 1, 1)
    return np.asarray(density + spread * (1 - 2 * np.minimum(rank * step, 1)))
