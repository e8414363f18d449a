"""From scores to weights: the best of each token, and a softmax over them."""

from __future__ import annotations

from typing import Any

from loramerge.errors import UsageError, say
from loramerge.routing.maths import Maths

FAR = -1e30  # a score that no softmax sees; infinities would make gradients NaN
TINY = 1e-30  # under a root, which has no slope at zero
USUAL = 3  # experts of a token, if nobody says


def shares(scores: Any, count: int, temperature: float, maths: Maths) -> Any:
    """A softmax of scores / T over the `count` largest of each row; the others get 0."""
    chosen = maths.top(scores, count)
    heat = (scores - maths.largest(scores)) / temperature
    weights = maths.exp(maths.where(chosen, heat, FAR))
    return weights / maths.total(weights)


def sigmoid(x: Any, maths: Maths) -> Any:
    """1 / (1 + e⁻ˣ), without overflow."""
    return 0.5 * (maths.tanh(0.5 * x) + 1.0)


def at_most(asked: int | None, usual: int, there: int, of: str = "experts") -> int:
    """How many are chosen: as asked, else the usual number as far as there are so many.

    Raises:
        UsageError: more are asked for than there are.
    """
    if asked is None:
        return min(usual, there)
    if asked > there:
        raise UsageError(f"{say('top_k', asked)} is more than the {there} {of} that there are.")
    return asked
