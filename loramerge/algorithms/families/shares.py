"""Weights as shares of one, for methods that are a mean of some kind."""

from __future__ import annotations

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.errors import UsageError, say


def shares(weights: Array) -> Array:
    """p_t = w_t / Σ w.

    Raises:
        UsageError: they sum to zero.

    >>> shares(np.array([1.0, 3.0]))
    array([0.25, 0.75])
    """
    total = float(np.sum(weights))
    if abs(total) < 1e-12 * float(np.abs(weights).sum()) or total == 0.0:
        raise UsageError(f"The weights sum to zero, so they have no mean: use {say('method', 'linear')}.")
    return weights / total


def positive_shares(weights: Array, method: str) -> Array:
    """The same for a mean that allows no negative weight.

    Raises:
        UsageError: a weight is negative, or all are zero.
    """
    if (weights < 0).any():
        worst = int(np.argmin(weights))
        raise UsageError(
            f"{method} takes no weight below zero; source {worst + 1} has {weights[worst]:g}. To subtract a "
            f"skill use {say('method', 'linear')}."
        )
    return shares(weights)
