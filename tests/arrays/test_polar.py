"""Polar factors: nearest orthonormal columns, and what is done where there are none."""

import numpy as np
import pytest

from loramerge.arrays.polar import nearest, rows_as_directions, singular

rng = np.random.default_rng(1)


def test_the_polar_factor_is_orthonormal_and_nearer_than_any_other():
    columns = rng.standard_normal((2, 9, 4))
    found = nearest(columns, 1e-5)
    assert found.swapaxes(1, 2) @ found == pytest.approx(np.broadcast_to(np.eye(4), (2, 4, 4)))
    least = np.linalg.norm(found - columns)
    for _ in range(50):
        other = np.linalg.qr(found + 0.3 * rng.standard_normal(found.shape))[0]
        other = other * np.sign((other * columns).sum(axis=1, keepdims=True))
        assert np.linalg.norm(other - columns) >= least


def test_it_turns_with_its_columns():
    columns = rng.standard_normal((9, 4))
    turn, mix = np.linalg.qr(rng.standard_normal((9, 9)))[0], np.linalg.qr(rng.standard_normal((4, 4)))[0]
    assert nearest(turn @ columns @ mix, 1e-5) == pytest.approx(turn @ nearest(columns, 1e-5) @ mix)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_copies_of_a_column_are_one_direction_together(count):
    columns = rng.standard_normal((9, 3))
    found = nearest(np.repeat(columns, count, axis=1), 1e-5)
    assert found @ np.repeat(np.eye(3), count, axis=1).T / np.sqrt(count) == pytest.approx(
        nearest(columns, 1e-5)
    )


def test_zero_columns_stay_zero_and_nothing_at_all_is_nothing():
    columns = rng.standard_normal((9, 3)) * [1, 0, 1]
    assert not nearest(columns, 1e-5)[:, 1].any()
    assert not nearest(np.zeros((9, 3)), 1e-5).any()
    assert nearest(np.zeros((9, 0)), 1e-5).shape == (9, 0)


def test_rows_of_coordinates_become_directions():
    assert rows_as_directions(np.array([[[3.0, 4.0], [0.0, 0.0]]])).tolist() == [[[0.6, 0.8], [0.0, 0.0]]]


@pytest.mark.parametrize("dependent", [False, True])
def test_the_singular_values_are_those_of_the_product_strongest_first(dependent):
    """Also where columns are shorter than 1, and it has to be taken apart anew; each module by itself."""
    x, y = (np.linalg.qr(rng.standard_normal((2, 6, 6)))[0] for _ in range(2))
    if dependent:
        x[1] = nearest(np.repeat(x[1][:, :3], 2, axis=1), 1e-5)
    sigma = rng.random((2, 6))
    left, strength, right = singular(x, sigma, y)
    product = (x * sigma[:, None, :]) @ y.swapaxes(1, 2)
    assert (left * strength[:, None, :]) @ right == pytest.approx(product)
    assert strength == pytest.approx(np.linalg.svd(product, compute_uv=False))
