"""Stored factors are the merged ones, rounded once, and the error that is reported is the one made."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramerge import Adapter, LowRank, combine
from loramerge.arrays.dtypes import FLOATS, epsilon
from loramerge.arrays.rounding import bound, error, store
from loramerge.errors import IncompatibleError, VerificationError

every_type = pytest.mark.parametrize("dtype", FLOATS)
few = settings(max_examples=60, deadline=None, derandomize=True)


def factors(seed=0, rank=3, shape=(7, 9)):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((shape[0], rank)), rng.standard_normal((rank, shape[1]))


def exact(up, down, stored):
    """‖up @ down − stored‖ in long doubles."""
    wide = [np.asarray(side, float).astype(np.longdouble) for side in stored]
    apart = up.astype(np.longdouble) @ down.astype(np.longdouble) - wide[0] @ wide[1]
    return float(np.sqrt((apart**2).sum()))


# --- storing ----------------------------------------------------------------------------------------


@every_type
@pytest.mark.parametrize("rank", [3, 5, 16])
def test_units_are_padded_with_zeros_to_the_rank(dtype, rank):
    up, down = factors()
    stored_up, stored_down = store(up, down, dtype, rank, "q")
    assert stored_up.shape == (7, rank)
    assert stored_down.shape == (rank, 9)
    assert stored_up.dtype == stored_down.dtype == FLOATS[dtype]
    assert not stored_up[:, 3:].any()
    assert not stored_down[3:].any()


@every_type
def test_ordinary_factors_are_only_cast(dtype):
    up, down = factors()
    stored = store(up, down, dtype, 3, "q")
    for found, given_ in zip(stored, (up, down), strict=True):
        assert found.tobytes() == given_.astype(FLOATS[dtype]).tobytes()


POWERS = [2.0**20, 2.0**-20, 2.0**14, 2.0**-9]


@pytest.mark.parametrize("power", POWERS)
def test_balancing_for_float16_is_exact(power):
    """Small whole numbers times a power of two: nothing is rounded, though a half is out of range."""
    rng = np.random.default_rng(1)
    up, down = rng.integers(-8, 9, (7, 3)) * power, rng.integers(-8, 9, (3, 9)) / power
    stored = store(up, down, "F16", 3, "q")
    assert np.array_equal(stored[0].astype(float) @ stored[1].astype(float), up @ down)
    assert error(up, down, *stored) == 0


@pytest.mark.parametrize("power", [1e5, 1e-5, 1e7, 1e-7])
def test_an_unbalanced_unit_is_as_accurate_in_float16_as_a_balanced_one(power):
    up, down = factors(2)
    plain = error(up, down, *store(up, down, "F16", 3, "q"))
    turned = error(up * power, down / power, *store(up * power, down / power, "F16", 3, "q"))
    assert turned <= 16 * plain


def test_a_zero_half_does_not_hurt_the_balancing():
    up, down = factors(3)
    up[:, 1] = 0
    down[1] *= 1e3
    stored = store(up, down, "F16", 4, "q")
    assert error(up, down, *stored) <= bound(*stored, "F16")


def test_a_value_too_large_for_float16_is_refused_with_a_way_out():
    up, down = factors(4)
    with pytest.raises(IncompatibleError) as refused:
        store(up * 1e6, down * 1e6, "F16", 3, "layers.0.q")
    assert str(refused.value) == (
        "The merge of layers.0.q does not fit float16 (largest value 6.55e+04): "
        "use dtype='bfloat16' or float32."
    )


@pytest.mark.parametrize(("dtype", "size"), [("BF16", 1e39), ("F32", 1e39)])
def test_other_types_are_refused_too_where_they_overflow(dtype, size):
    up, down = factors(5)
    with pytest.raises(IncompatibleError, match="does not fit"):
        store(up * size, down / size, dtype, 3, "q")


# --- the error --------------------------------------------------------------------------------------


@every_type
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e-3])
def test_the_error_is_the_dense_one_even_where_it_is_tiny(dtype, scale):
    up, down = factors(6, rank=4)
    up *= scale
    stored = store(up, down, dtype, 6, "q")
    found, made = error(up, down, *stored) ** 0.5, exact(up, down, stored)
    assert found == pytest.approx(made, rel=1e-6)
    assert (made == 0) == (dtype == "F64")


@every_type
@pytest.mark.parametrize("size", [1e-10, 1.0])
def test_a_wrong_value_shows_in_the_error_at_its_size(dtype, size):
    up, down = factors(7)
    stored_up, stored_down = store(up, down, dtype, 3, "q")
    spoiled = up.copy()
    spoiled[2, 1] += size
    if dtype == "F64":
        found = error(spoiled, down, stored_up, stored_down) ** 0.5
        assert found == pytest.approx(size * np.linalg.norm(down[1]), rel=1e-5)
    else:
        assert error(spoiled, down, stored_up, stored_down) ** 0.5 == pytest.approx(
            exact(spoiled, down, (stored_up, stored_down)), rel=1e-6
        )


@few
@given(
    st.sampled_from(list(FLOATS)),
    st.integers(0, 999),
    st.tuples(*[st.integers(1, 6)] * 3),
    st.sampled_from([0, -2, -1, 1, 2]),
    st.sampled_from([0, -2, -1, 1, 2]),
)
def test_honest_rounding_stays_within_the_bound(dtype, seed, sizes, up_power, down_power):
    outs, rank, ins = sizes
    up, down = factors(seed, rank, (outs, ins))
    up, down = up * 10.0**up_power, down * 10.0**down_power
    stored = store(up, down, dtype, rank, "q")
    assert error(up, down, *stored) <= bound(*stored, dtype)


@every_type
def test_the_bound_is_no_more_than_a_few_roundings(dtype):
    up, down = factors(8)
    stored = store(up, down, dtype, 3, "q")
    sizes = np.linalg.norm(up, axis=0) * np.linalg.norm(down, axis=1)
    assert bound(*stored, dtype) ** 0.5 <= 3 * epsilon(dtype) * sizes.sum()


def test_another_value_breaks_the_bound():
    up, down = factors(9)
    for dtype in FLOATS:
        stored_up, stored_down = store(up, down, dtype, 3, "q")
        stored_up[0, 0] = -stored_up[0, 0]
        assert error(up, down, stored_up, stored_down) > bound(stored_up, stored_down, dtype)


def test_values_that_vanish_in_the_type_are_refused():
    up, down = factors(10)
    source = Adapter.of({"q": LowRank(up * 1e-6, down * 1e-6)})
    with pytest.raises(VerificationError, match="values are too small for the type"):
        combine([source], dtype="float16")


def test_by_hand():
    """1 + 2⁻⁹ is 1 in bfloat16, so of [1 + 2⁻⁹]·[1] the error is 2⁻⁹."""
    up, down = np.array([[1 + 2.0**-9]]), np.array([[1.0]])
    stored = store(up, down, "BF16", 1, "q")
    assert stored[0].astype(float).tolist() == [[1]]
    assert error(up, down, *stored) == 2.0**-18
