"""Ranks are kept to, and sources that a method cannot take are refused."""

import numpy as np
import pytest

from loramerge import combine
from loramerge.errors import IncompatibleError, UsageError
from tests.helpers.adapters import merged, random_adapters
from tests.laws.rows import ROWS, every_method, every_pair, taken


@every_pair
def test_no_module_gets_more_units_than_asked_for(method, sources, weights):
    sources, weights = taken(method, sources, weights)
    merge = combine(sources, method, weights=weights, threads=1)
    asked = getattr(merge.method, "rank", None)

    def units(target):
        numbers = (
            method.weights(np.array(weights))
            if method.traits.given == "similarity"
            else np.ones(len(sources))
        )
        counted = [source for source, number in zip(sources, numbers, strict=True) if number]
        ranks = [source[target].rank for source in counted if target in source]
        total = sum(ranks) if method.traits.units == "any" else max(ranks)
        inner = getattr(method, "shared", method)  # of a method with masks
        full = method.traits.sums or getattr(inner, "space", "") == "dense"
        return min(asked or total, total, min(merge.adapter[target].shape) if full else total)

    assert {slot.rank for slot in merge.adapter.slots.values()} == {max(map(units, merge.adapter))}


@pytest.mark.parametrize("method", [m for m in ROWS.values() if m.traits.most], ids=repr)
def test_more_sources_than_a_method_takes_are_refused(method):
    """The others take the four of one merge above."""
    count = method.traits.most + 1
    with pytest.raises(UsageError, match=f"{count} have a weight"):
        merged(random_adapters(0, (2,) * count), method)


@every_method
def test_weights_below_zero_are_refused_where_they_mean_nothing(method):
    sources, weights = random_adapters(0, (2, 2)), [1.0, -0.5]
    if method.traits.negative:
        assert all(np.isfinite(matrix).all() for matrix in merged(sources, method, weights).values())
    else:
        with pytest.raises(UsageError, match=r"no weight below zero; source 2 has -0\.5"):
            merged(sources, method, weights)


@every_method
def test_sources_that_do_not_fit_together_are_refused_by_the_module(method):
    """Of another rank, or with an A of their own, where unit i of one goes with unit i of the other."""
    for ranks, refused in (((2, 3), method.traits.units != "any"), ((2, 2), method.traits.units == "shared")):
        sources = random_adapters(0, ranks)
        if refused:
            with pytest.raises(IncompatibleError, match=r"layers\.0\.[qv] "):
                merged(sources, method, [1.0, 1.0])
        else:
            assert all(np.isfinite(matrix).all() for matrix in merged(sources, method, [1.0, 1.0]).values())
