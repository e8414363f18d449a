"""Sources that nearly share A, or differ by many orders."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest

from loramerge import Adapter, Cat, Lego, Linear, LowRank, Svd
from tests.helpers.adapters import changed, distance, merged, truncated, update, weighted
from tests.laws.rows import MERGES, ROWS, TRUNCATING, with_room


def nearly_shared(offset, count=4, rank=4, shape=(24, 30)):
    """As trained from one seed: the same A in all, but for a small offset."""
    rng = np.random.default_rng(11)
    common = rng.standard_normal((rank, shape[1]))

    def one():
        return LowRank(
            rng.standard_normal((shape[0], rank)), common + offset * rng.standard_normal(common.shape)
        )

    return [Adapter.of({"q": one(), "v": one()}) for _ in range(count)]


every_offset = pytest.mark.parametrize("offset", [1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 0.0])


@every_offset
@pytest.mark.parametrize("method", TRUNCATING.values(), ids=TRUNCATING)
@pytest.mark.parametrize("rank", [1, 3, 4, 5, 8, 16])
def test_truncation_stays_optimal_where_the_sources_nearly_share_a(method, offset, rank):
    sources, weights = nearly_shared(offset), [1.0, -0.5, 2.0, 1.0]
    found = merged(sources, replace(method, rank=rank), weights)
    for path, total in weighted(sources, method.weights(np.array(weights))).items():
        least = np.linalg.norm(total - truncated(total, rank))
        assert np.linalg.norm(total - found[path]) - least <= 1e-7 * np.linalg.norm(total)


@every_offset
@pytest.mark.parametrize("features", ["raw", "normalised"])
def test_lego_is_finite_and_exact_where_the_sources_nearly_share_a(offset, features):
    sources, weights = nearly_shared(offset), [1.0, -0.5, 2.0, 1.0]
    for rank in (1, 4, 7):
        some = merged(sources, "lego", weights, rank=rank, features=features)
        assert all(np.isfinite(matrix).all() for matrix in some.values())
    whole = merged(sources, "lego", weights, rank=16, features=features)
    assert distance(whole, weighted(sources, weights)) < 1e-7


@pytest.mark.parametrize("method", [Svd(rank=8), Linear(), Cat(), Lego(rank=8)], ids=repr)
def test_units_of_very_different_strength_keep_the_weak_ones_to_the_norm_of_all(method):
    rng = np.random.default_rng(12)

    def graded(u):
        return LowRank(u.up * np.logspace(0, -12, u.rank), u.down, u.scale)

    sources = [changed(Adapter.of({"q": update(rng, 4, (20, 30))}), graded) for _ in range(2)]
    assert distance(merged(sources, method), weighted(sources, [1, 1])) < 2e-7


def test_a_gap_between_the_sources_of_many_orders_is_no_obstacle():
    """One adapter is 1e-9 of the other: the sum is the strong one, and nothing overflows or vanishes."""
    (a, b), _ = MERGES["two of one rank"]
    for method in chain(ROWS.values()):
        bent = getattr(method, "power", 1.0) != 1 or getattr(method, "boost", None)
        if method.traits.family == "linear" and not bent:
            exact = with_room(method, 6) if not method.traits.exact else with_room(method, None)
            total = weighted([a, b], exact.weights(np.array([1.0, 1e-9])))
            assert distance(merged([a, b], exact, [1.0, 1e-9]), total) < 1e-9
