"""Shrunk whitening by hand, and what lies at both ends of it."""

import numpy as np
import pytest

from loramerge import ShrunkTsv
from tests.algorithms.test_iso_c import dense_of, unit
from tests.helpers.adapters import distance, merged, random_adapters

SHAPES = {"q": (40, 50), "v": (60, 30)}


def test_by_hand():
    """The outputs e₁ and [.6 .8] have UᵀU = [[1 .6], [.6 1]], eigenvalues 1.6 and .4; G = ½(1 + λ).

    So u± = (e₁ ± [.6 .8])/√2 are divided by √1.3 and √.7; the inputs are orthogonal, and stay.
    """
    found = dense_of(unit([2, 0], [1, 0]), unit([0.6, 0.8], [0, 1]), method=ShrunkTsv(shrink=0.5, power=1.0))
    units = np.array([[1, 0.6], [0, 0.8]])
    turn = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
    white = units @ (turn / np.sqrt([1.3, 0.7])) @ turn
    whole = white * [2, 1]
    assert found == pytest.approx(whole * 1.5 / np.linalg.norm(whole))


def test_the_power_by_hand():
    """Orthogonal units are not turned: diag(16, 1) at p = ½ is diag(4, 1), brought to the norm (16 + 1)/2."""
    found = dense_of(unit([16, 0], [1, 0]), unit([0, 1], [0, 1]), method=ShrunkTsv(power=0.5))
    assert found == pytest.approx(np.diag([4, 1]) * 8.5 / np.sqrt(17))


def at_norm(sources, method, weights):
    return merged(sources, method, weights, scale="norm")


def test_without_shrinkage_it_is_tsv_as_strong_as_a_source():
    sources, weights = random_adapters(61, (4, 3, 5), SHAPES), [1.0, -2.0, 0.5]
    hard = at_norm(sources, ShrunkTsv(shrink=0.0, power=1.0), weights)
    assert distance(hard, at_norm(sources, "tsv", weights)) < 1e-9


def test_with_all_of_it_left_out_it_is_the_sum_as_strong_as_a_source():
    sources, weights = random_adapters(62, (4, 3, 5), SHAPES), [1.0, -2.0, 0.5]
    none = at_norm(sources, ShrunkTsv(shrink=1.0, power=1.0), weights)
    assert distance(none, at_norm(sources, "linear", weights)) < 1e-9


def test_the_merge_is_as_strong_as_its_sources_are_on_average():
    sources, weights = random_adapters(63, (4, 3, 5), SHAPES), [1.0, -2.0, 0.5]
    each = [
        merged([source], "linear", [abs(weight)]) for source, weight in zip(sources, weights, strict=True)
    ]
    for path, matrix in merged(sources, ShrunkTsv(), weights).items():
        assert np.linalg.norm(matrix) == pytest.approx(np.mean([np.linalg.norm(one[path]) for one in each]))


def test_nearly_shared_directions_are_not_pushed_apart_at_full_strength():
    """Units 0.02 apart: tsv makes them orthogonal, σ = 3 and 3. With shrinkage the second is far weaker."""
    angle = 0.02
    a, b = unit([3, 0], [1, 0]), unit([3 * np.cos(angle), 3 * np.sin(angle)], [1, 0])
    soft = np.linalg.svd(dense_of(a, b, method=ShrunkTsv(power=1.0)), compute_uv=False)
    assert soft[1] < 0.01 * soft[0]
