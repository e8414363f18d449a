"""Methods that choose among their sources: how similar each is to the query, and which are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from loramerge.adapters.adapter import Adapter
from loramerge.algorithms import Method, name_of
from loramerge.errors import UsageError, printable, say
from loramerge.request.request import Request
from loramerge.request.rules import Ramp, Rule, Weight
from loramerge.request.schedule import check_weights

SOME = 8  # names in one note


def weighed(
    method: Method,
    adapters: Sequence[Adapter],
    request: Request,
    left_out: Mapping[str, float] | None = None,
) -> Sequence[Weight] | None:
    """The weights as given; for a method with a query, the similarities of the descriptions to it.

    Args:
        left_out: name -> similarity of those that a record says were not chosen; its weights are then the
            similarities of the others, and nothing is read or compared again.

    Raises:
        UsageError: weights beside a query, or descriptions without one.   SourceError: as `descriptions`.
    """
    if method.query is None:
        return _without_words(method, request)
    if left_out is not None:
        return request.weights
    # Not multiplied: they would be two answers to one question.
    if request.weights is not None or any(rule.weights is not None for rule in request.rules):
        raise UsageError(
            f"With {say('describe')}, {name_of(method)} finds the weights itself: leave yours "
            f"out. To state the "
            f"similarities themselves, give {say('weights')} without {say('describe')}."
        )
    # Text is compared for those who ask for it.
    from loramerge.sources.descriptions import descriptions, names
    from loramerge.sources.similarity import similarities

    called, told = [names(adapter) for adapter in adapters], request.descriptions
    return similarities(method.query, called, lambda: descriptions(adapters, told), request.embedding)


def _without_words(method: Method, request: Request) -> Sequence[Weight] | None:
    name = name_of(method)
    if request.descriptions or request.embedding is not None:
        raise UsageError(
            f"Descriptions are compared with what {say('describe')} says, and {name} has no "
            f"{say('describe')}: use "
            f"{say('method', 'sg')} {say('describe', 'TEXT')}."
        )
    if request.weights is None and method.traits.given == "similarity":
        raise UsageError(
            f"{name} mixes sources by what they are good at: say what you want with "
            f"{say('describe', 'TEXT')}, or give "
            f"the similarity of each source with {say('weights')}."
        )
    return request.weights


def unchosen(
    method: Method, adapters: Sequence[Adapter], weights: Sequence[Weight] | None, rules: Sequence[Rule]
) -> dict[int, float]:
    """Position -> similarity of the sources that get no share in any module: they need not be read.

    With weight 0 they would still take rank, memory and a SHA-256.
    """
    ramps = [w for w in (() if weights is None else weights) if isinstance(w, Ramp)]
    varying = bool(ramps) or any(rule.weights is not None for rule in rules)
    if weights is None or method.traits.given != "similarity" or varying:
        return {}
    given = check_weights([float(w) for w in weights if not isinstance(w, Ramp)], len(adapters))
    return {int(i): float(given[i]) for i in np.flatnonzero(method.weights(given) == 0)}


def told(left: Mapping[str, float]) -> list[str]:
    """A sentence about those that were left out, the most similar first."""
    if not left:
        return []
    ordered = sorted(left.items(), key=lambda each: (-each[1], each[0]))
    named = ", ".join(f"{printable(name, 60)} {similarity:.3g}" for name, similarity in ordered[:SOME])
    more = f" and {len(left) - SOME} more" if len(left) > SOME else ""
    return [f"left out with weight 0, by similarity: {named}{more}"]
