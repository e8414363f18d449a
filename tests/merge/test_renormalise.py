"""A module that some sources lack: zero there by default, or the weighted merge of those that have it."""

from dataclasses import replace

import numpy as np
import pytest

from loramerge import UsageError, combine
from tests.helpers.adapters import merged as dense
from tests.helpers.adapters import random_adapters

A, B, C = random_adapters(0, [2, 3, 1])


def without(adapter, path):
    return replace(adapter, slots={t: s for t, s in adapter.slots.items() if t.path != path})


SOURCES = [A, without(B, "layers.0.q"), C]


@pytest.mark.parametrize("method", ["linear", "average"])
@pytest.mark.parametrize("weights", [(1, 1, 1), (2, 1, 0.5), (1, -0.5, 2)], ids=str)
def test_it_divides_by_the_weights_present(method, weights):
    plain, full = dense(SOURCES, method, weights), dense(SOURCES, method, weights, renormalise=True)
    np.testing.assert_allclose(full["layers.0.v"], plain["layers.0.v"], rtol=1e-12)
    factor = sum(weights) / (weights[0] + weights[2])
    np.testing.assert_allclose(full["layers.0.q"], factor * plain["layers.0.q"], rtol=1e-9)


def test_an_average_of_those_that_have_it():
    (target,) = [t for t in A if t.path == "layers.0.q"]
    expected = (A[target].dense() + C[target].dense()) / 2
    np.testing.assert_allclose(dense(SOURCES, "average", renormalise=True)["layers.0.q"], expected, rtol=1e-9)


def test_it_says_so_and_needs_a_weight():
    notes = combine(SOURCES, renormalise=True).report.notes
    assert any("the others count for it" in note for note in notes)
    with pytest.raises(UsageError, match="renormalise=True"):
        combine(SOURCES, weights=[1, 1, -1], renormalise=True)
