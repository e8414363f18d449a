"""Iso-C by hand; against the plain loop in families/test_span.py."""

import numpy as np
import pytest

from loramerge import Adapter, IsoC, LowRank, Target, combine
from tests.helpers.adapters import distance, merged, random_adapters


def unit(up, down):
    return Adapter.of({"q": LowRank(np.array(up, float)[:, None], np.array(down, float)[None])})


def dense_of(*sources, method, weights=None):
    return combine(sources, method, weights=weights, dtype="float64").adapter[Target("q")].dense()


def test_by_hand():
    """M = [[3, .6], [0, .8]], det 2.4: (σ₁ + σ₂)² = ‖M‖² + 2·2.4 = 14.8 and U Vᵀ = (M + cof M)/√14.8."""
    found = dense_of(unit([3, 0], [1, 0]), unit([0.6, 0.8], [0, 1]), method=IsoC())
    assert found == pytest.approx(np.array([[1.9, 0.3], [-0.3, 1.9]]))


def test_all_singular_values_of_the_merge_are_equal():
    sources = random_adapters(61, (4, 3), {"q": (20, 30)})
    (found,) = merged(sources, IsoC()).values()
    sigma = np.linalg.svd(found, compute_uv=False)
    assert sigma[:7] == pytest.approx(sigma[0])
    assert sigma[7:].max() < 1e-12 * sigma[0]


def test_a_direction_that_cancels_does_not_count_in_the_mean():
    a, b = random_adapters(62, (3, 2), {"q": (20, 30)})
    assert distance(merged([a, b, a], IsoC(), [1.0, 1.0, -1.0]), merged([b], IsoC())) < 1e-9
