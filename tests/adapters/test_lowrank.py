"""The algebra of factors is the algebra of the matrices they stand for."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramerge import LowRank
from tests.helpers.adapters import truncated, update

few = settings(max_examples=50, deadline=None, derandomize=True)
sizes = st.integers(1, 8)


@st.composite
def pairs(draw):
    """Two updates of one shape, of any ranks and scales, in any float type."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    shape = draw(sizes), draw(sizes)
    types = st.sampled_from([np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
    scales = st.sampled_from([1.0, -2.0, 0.125, 1 / 3, 0.0])

    def one():
        u = update(rng, draw(sizes), shape)
        return LowRank(u.up.astype(draw(types)), u.down.astype(draw(types)), draw(scales))

    return one(), one()


def plain(u):
    """scale · up @ down, one unit at a time."""
    up, down = u.up.astype(float), u.down.astype(float)
    return u.scale * sum(np.outer(up[:, i], down[i]) for i in range(u.rank))


def same(found, expected):
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


@few
@given(pairs(), st.sampled_from([2.0, -0.3, 0.0]))
def test_it_is_a_vector_space(pair, c):
    a, b = pair
    same(a.dense(), plain(a))
    same((a + b).dense(), plain(a) + plain(b))
    same((a - b).dense(), plain(a) - plain(b))
    same((-a).dense(), -plain(a))
    same((c * a).dense(), c * plain(a))
    same((a * c).dense(), c * plain(a))
    assert (a + b).rank == a.rank + b.rank
    assert (a + b).shape == a.shape == plain(a).shape


@few
@given(pairs())
def test_norms_and_inner_products_are_the_dense_ones(pair):
    a, b = pair
    same(a.inner(b), (plain(a) * plain(b)).sum())
    same(b.inner(a), a.inner(b))
    assert a.norm() == pytest.approx(np.linalg.norm(plain(a)), rel=1e-7, abs=1e-7)


@few
@given(pairs(), st.integers(1, 17))
def test_compressing_is_the_truncated_svd(pair, rank):
    total = pair[0] + pair[1]
    small = total.compress(rank)
    assert small.rank <= rank
    assert small.dense() == pytest.approx(truncated(total.dense(), rank), abs=1e-9)


def test_compressed_factors_are_balanced():
    small = update(np.random.default_rng(1), 5).compress(3)
    sigma = np.linalg.norm(small.up, axis=0) ** 2
    assert small.up.T @ small.up == pytest.approx(np.diag(sigma), abs=1e-12)
    assert small.down @ small.down.T == pytest.approx(np.diag(sigma), abs=1e-12)


def test_compressing_is_accurate_where_units_nearly_cancel():
    """By QR, not by Grams: what is left of u − (u + 1e-9·v) is v's, to seven digits."""
    rng = np.random.default_rng(2)
    u, v = update(rng, 2), update(rng, 2)
    left = (u - (u + 1e-9 * v)).compress(2)
    assert np.linalg.norm(left.dense() + 1e-9 * v.dense()) < 1e-6 * 1e-9 * v.norm()


def test_a_scale_rounds_nothing():
    """Times a number keeps the very factors, in their type."""
    u = update(np.random.default_rng(3), 2)
    half = LowRank(u.up.astype(np.float16), u.down.astype(np.float16))
    third = half * (1 / 3)
    assert third.up is half.up
    assert third.down is half.down
    assert third.scale == 1 / 3
    assert third.dense().dtype == np.float64


BAD = {
    "other ranks": ((4, 2), (3, 5)),
    "up is a vector": ((4,), (4, 5)),
    "down is a vector": ((4, 2), (2,)),
    "a convolution": ((4, 2, 1, 1), (2, 5)),
}


@pytest.mark.parametrize(("up", "down"), BAD.values(), ids=BAD)
def test_factors_that_do_not_fit_are_refused(up, down):
    with pytest.raises(ValueError, match=r"must be \(out, rank\) and \(rank, in\)"):
        LowRank(np.zeros(up), np.zeros(down))


def test_by_hand():
    """2·[1 2]ᵀ[3 0] + [0 1]ᵀ[0 4] = [[6 0], [12 4]]; the inner product of the two is 0."""
    a = LowRank(np.array([[1.0], [2.0]]), np.array([[3.0, 0.0]]), scale=2.0)
    b = LowRank(np.array([[0.0], [1.0]]), np.array([[0.0, 4.0]]))
    assert (a + b).dense().tolist() == [[6, 0], [12, 4]]
    assert a.inner(b) == 0
    assert a.norm() == pytest.approx(180**0.5)
    assert (a + a).inner(a) == pytest.approx(360)
