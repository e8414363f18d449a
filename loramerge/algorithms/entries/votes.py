"""What becomes of the entries that are kept: their sum, or the mean of those that win a vote.

    elect   the sign of each entry by a vote of the sources
    agree   which sources have that sign
    mean    the mean of those that agree

Arrays have a leading axis over sources, x (T, …); weights are (T,). Sources of weight 0 are left out before.
Sums run over the sources in a loop: each entry then has the same bits in whatever tile or batch it comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from loramerge.algorithms.entries.block import Block
from loramerge.arrays.backend import Array, namespace

TIE = 1e-12  # share of all votes, below which a majority is rounding
Election = Literal["weighted", "raw", "count", "none"]
Divisor = Literal["weight", "count", "none"]


@dataclass(frozen=True, slots=True)
class Vote:
    """The sources elect a sign for every entry; those that agree with it are merged.

    Args:
        election: what is added up to elect a sign: weighted entries, raw ones, one vote of each source;
            none: there is no election.
        divisor: what the sum of those that agree is divided by.
    """

    election: Election
    divisor: Divisor

    @property
    def copies(self) -> Literal["additive", "consensus"]:
        """What copies of one adapter come to."""
        return "additive" if self.divisor == "none" else "consensus"

    @property
    def common(self) -> Literal["times", "same"]:
        """What a factor of all weights does: of a mean by weights, nothing."""
        return "same" if self.divisor == "weight" else "times"

    @property
    def linear(self) -> bool:
        """Whether it is the weighted sum."""
        return self.election == self.divisor == "none"

    def __call__(self, block: Block) -> Array:
        """The merged entries (M, a, b)."""
        x, weights = block.values, block.weights
        if self.election == "none":
            return mean(x, (x != 0).astype(x.dtype), weights, self.divisor)
        if self.election == "weighted":
            return mean(x, agree(turn(x, weights), elect(x, weights)), weights, self.divisor)
        votes = namespace(x).sign(x) if self.election == "count" else x
        return mean(x, agree(x, elect(votes, np.ones(len(x)))), weights, self.divisor)


def total(block: Block) -> Array:
    """The weighted sum (M, a, b) of a block."""
    return weighted_sum(block.values, block.weights)


def weighted_sum(x: Array, weights: Array) -> Array:
    """Σ_t w_t x_t (…).

    >>> weighted_sum(np.array([[1.0, 2.0], [10.0, 20.0]]), np.array([1.0, 0.5]))
    array([ 6., 12.])
    """
    total = x[0] * x.dtype.type(weights[0])
    for one, weight in zip(x[1:], weights[1:], strict=True):
        total += one * x.dtype.type(weight) if weight != 1 else one
    return total


# PEFT and mergekit elect + where votes cancel, the paper's code the sign of the whole vector: in the core
# both depend on the sign of a basis vector
def elect(x: Array, weights: Array) -> Array:
    """-1, 0 or 1 for each entry (…): the sign of Σ_t w_t x_t. Where the votes cancel, nobody is elected.

    >>> elect(np.array([[1.0, 2.0, 5.0], [-3.0, 1.0, -5.0]]), np.ones(2))
    array([-1.,  1.,  0.])
    """
    votes = weighted_sum(x, weights)
    if x.dtype == np.float64:  # where updates cancel, products and bases leave a trace of rounding
        votes[abs(votes) <= TIE * weighted_sum(abs(x), abs(weights))] = 0.0
    return namespace(x).sign(votes)


def turn(x: Array, weights: Array) -> Array:
    """The entries (T, …) with the sign that the weights give them."""
    if (weights > 0).all():
        return x
    return x * namespace(x).asarray(np.sign(weights).reshape(-1, *[1] * (x.ndim - 1)), x.dtype)


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
    shares = abs(weights) if divisor == "weight" else np.ones(len(weights))
    share = weighted_sum(agreeing, shares)
    share[share == 0] = 1  # where nobody agrees the sum is 0
    total /= share
    return total


def strongest(x: Array, elected: Array) -> Array:
    """The largest entry of the elected sign (…).

    >>> strongest(np.array([[1.0, -2.0], [3.0, -1.0]]), np.array([1.0, -1.0]))
    array([ 3., -2.])
    """
    xp = namespace(x)
    top = x[0] * elected
    for one in x[1:]:
        xp.maximum(top, one * elected, out=top)
    return xp.maximum(top, 0, out=top) * elected
