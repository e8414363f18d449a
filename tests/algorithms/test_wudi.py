"""WUDI by hand, and that it is the minimum that it says it is."""

import numpy as np
import pytest

from loramerge import Adapter, LowRank, Wudi
from loramerge.errors import UsageError
from tests.algorithms.families.test_span import near
from tests.algorithms.test_iso_c import dense_of, unit
from tests.helpers.adapters import dense, distance, merged, random_adapters

SHAPES = {"q": (40, 50)}


def test_by_hand():
    """e₁e₁ᵀ and e₂[.6 .8]: of x = e₁ it makes e₁ as the first does, of [.6 .8] it makes e₂ as the second."""
    found = dense_of(unit([1, 0], [1, 0]), unit([0, 1], [0.6, 0.8]), method=Wudi(ridge=1e-12))
    assert found == pytest.approx(np.array([[1, -0.75], [0, 1.25]]))


def test_with_a_ridge_by_hand():
    """Inputs e₁ and e₂: G = 1 and tr G/ρ = 1, so each is between its half and itself: ½ + ½/(1 + ridge)."""
    found = dense_of(unit([4, 0], [1, 0]), unit([0, 2], [0, 1]), method=Wudi(ridge=3.0))
    assert found == pytest.approx(np.diag([4, 2]) * (0.5 + 0.5 / 4))


def loss(merge, taus, ridge, directions):
    mean, trace = sum(taus) / len(taus), len(taus)
    each = [np.linalg.norm((merge - tau) @ tau.T) ** 2 / np.linalg.norm(tau) ** 2 for tau in taus]
    return sum(each) + ridge * trace / directions * np.linalg.norm(merge - mean) ** 2


@pytest.mark.parametrize("ridge", [0.01, 0.1, 5.0])
def test_no_step_from_it_lowers_the_loss(ridge):
    sources, weights = random_adapters(91, (4, 3, 2), SHAPES), [1.0, -0.5, 2.0]
    (found,) = merged(sources, Wudi(ridge=ridge), weights).values()
    taus = [w * dense(source)["q"] for w, source in zip(weights, sources, strict=True)]
    least, rng = loss(found, taus, ridge, 9), np.random.default_rng(92)
    steps = [1e-4 * rng.standard_normal(found.shape) for _ in range(20)] + [1e-4 * tau for tau in taus]
    assert all(loss(found + sign * step, taus, ridge, 9) > least for step in steps for sign in (1, -1))
    assert least < loss(sum(taus), taus, ridge, 9)  # the published start


def test_towards_no_ridge_every_source_acts_on_its_own_inputs_as_it_did():
    sources = random_adapters(93, (4, 3, 2), SHAPES)
    (found,) = merged(sources, Wudi(ridge=1e-12)).values()
    for source in sources:
        tau = dense(source)["q"]
        assert np.linalg.norm((found - tau) @ tau.T) < 1e-9 * np.linalg.norm(tau) ** 2


def test_a_large_ridge_gives_the_mean():
    sources = random_adapters(94, (4, 3), SHAPES)
    assert distance(merged(sources, Wudi(ridge=1e9)), merged(sources, "average")) < 1e-6


def test_the_ridge_keeps_adapters_of_one_seed_in_bounds():
    sources = near(1e-2)
    strongest = max(source[target].norm() for source in sources for target in source)
    norms = {ridge: np.linalg.norm(merged(sources, Wudi(ridge=ridge))["q"]) for ridge in (1e-9, 0.1)}
    assert norms[0.1] < 2 * strongest
    assert norms[1e-9] > 10 * strongest


def test_without_a_ridge_there_is_no_one_answer():
    with pytest.raises(UsageError, match="ridge=0 is not in the range"):
        Wudi(ridge=0)


def test_inputs_that_no_source_knows_are_left_alone():
    a, b = random_adapters(95, (2, 2), SHAPES)
    (found,) = merged([a, b], Wudi()).values()
    rows = np.vstack([s[t].down for s in (a, b) for t in s])
    x = np.linalg.svd(rows)[2][4:].T  # orthogonal to all rows
    assert np.abs(found @ x).max() < 1e-12


def test_one_adapter_of_tiny_strength_is_still_itself():
    tiny = Adapter.of({"q": LowRank(1e-12 * np.eye(4, 3), np.eye(3, 5))})
    assert distance(merged([tiny], Wudi()), dense(tiny)) < 1e-12


def two(**options):
    """Inputs e₁ of both sources and e₂ of the first alone: τ₁ = e₁e₁ᵀ + e₂e₂ᵀ, τ₂ = 2 e₁e₁ᵀ."""
    first = Adapter.of({"q": LowRank(np.eye(2), np.eye(2))})
    return dense_of(first, unit([2, 0], [1, 0]), method=Wudi(**options))


def test_the_flow_by_hand():
    """G = diag(½ + 1, ½), H = diag(½ + 2, ½), μ = ridge. From the mean, e₂ goes from ½ to 1 by 1 − e^{−½/μ}.

    e₁ goes from 3/2 to 5/3.
    """
    passed = 1 - np.exp(-np.array([1.5, 0.5]) / 0.4)
    wanted = np.array([1.5, 0.5]) + passed * (np.array([5 / 3, 1.0]) - [1.5, 0.5])
    assert two(filter="flow", ridge=0.4) == pytest.approx(np.diag(wanted))


def test_from_the_sum_by_hand():
    """The sum is diag(3, 1): e₂ is right already, and e₁ goes from 3 towards 5/3 by λ/(λ + μ)."""
    assert two(start="sum", ridge=0.5) == pytest.approx(np.diag([3 - (4 / 3) * 1.5 / 2.0, 1.0]))


def test_the_strongest_directions_by_hand():
    """λ = 3/2 and ½: (√1.5 + √.5)²/2 = 1.87, so K = 2 and both are answered, as without a ridge.

    diag(10, 1.1, 1) beside e₁: G = diag(1.98, .012, .0098), (Σ√λ)²/Σλ = 1.3, so K = 2: e₂ goes from .55 to
    1.1, and e₃ stays at ½.
    """
    assert two(filter="top") == pytest.approx(np.diag([5 / 3, 1.0]))
    three = Adapter.of({"q": LowRank(np.diag([10, 1.1, 1]), np.eye(3))})
    found = dense_of(three, unit([1, 0, 0], [1, 0, 0]), method=Wudi(filter="top"))
    assert found.diagonal()[1:] == pytest.approx([1.1, 0.5])


def test_the_top_filter_has_no_ridge():
    with pytest.raises(UsageError, match="filter=top has no ridge"):
        Wudi(filter="top", ridge=0.2)


def test_a_long_flow_is_the_minimum_without_a_ridge():
    sources = random_adapters(96, (4, 3, 2), SHAPES)
    long = merged(sources, Wudi(filter="flow", ridge=1e-9))
    assert distance(long, merged(sources, Wudi(ridge=1e-11))) < 1e-6
