"""`diff` measures updates, not factors: to rounding, however near the two are, and misses nothing."""

from dataclasses import replace

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapters.adapter import Held
from loramerge.adapters.lowrank import LowRank
from loramerge.errors import IncompatibleError, SourceError, VerificationError
from loramerge.testing import assert_adapters_close
from tests.helpers.adapters import cast, changed, dense, random_adapters, update, zero

A, B = random_adapters(0, [3, 4])


def by_name(found):
    return {module.name: module for module in found.modules}


def test_error_cosine_and_ratio_are_those_of_the_dense_matrices():
    found = by_name(lm.diff(A, B))
    first, second = dense(A), dense(B)
    assert found.keys() == first.keys()
    for path, module in found.items():
        a, b = first[path], second[path]
        norms = np.linalg.norm(a), np.linalg.norm(b)
        np.testing.assert_allclose(module.error, np.linalg.norm(a - b) / norms[0], rtol=1e-13)
        np.testing.assert_allclose(module.cosine, (a * b).sum() / norms[0] / norms[1], rtol=1e-13)
        np.testing.assert_allclose(module.norm_ratio, norms[1] / norms[0], rtol=1e-13)


def turned(u):
    """The same ΔW in other factors."""
    turn = np.random.default_rng(1).standard_normal((u.rank, u.rank))
    return LowRank(u.up @ turn, np.linalg.inv(turn) @ u.down, u.scale)


def padded(u):
    return LowRank(np.pad(u.up, ((0, 0), (0, 5))), np.pad(u.down, ((0, 5), (0, 0))), u.scale)


SAME = {
    "itself": (lambda u: u, 0.0),
    "a scale moved into a factor": (lambda u: LowRank(2.0 * u.up, u.down, u.scale / 2), 1e-14),
    "other factors": (turned, 1e-13),
    "more rank than needed": (padded, 1e-14),
    "an unbalanced split": (lambda u: LowRank(1e9 * u.up, 1e-9 * u.down, u.scale), 1e-14),
    "more rank than the matrix has": (lambda u: u + update(np.random.default_rng(2), 9) * 0.0, 1e-14),
}


@pytest.mark.parametrize(("change", "floor"), SAME.values(), ids=SAME)
def test_the_same_update_in_other_factors_is_equal(change, floor):
    first = random_adapters(3, [3], {"q": (7, 9)})[0]
    assert lm.diff(first, changed(first, change)).largest <= floor


@pytest.mark.parametrize("apart", [1e-3, 1e-8, 1e-12])
def test_a_small_difference_is_not_lost_in_the_rounding_of_large_numbers(apart):
    extra = update(np.random.default_rng(4), 1)
    first = random_adapters(5, [3], {"q": (7, 9)})[0]
    scaled = extra * (apart * dense_norm(first) / extra.norm())
    found = lm.diff(first, changed(first, lambda u: u + scaled))
    np.testing.assert_allclose(found.largest, apart, rtol=1e-2)


def dense_norm(source):
    return float(np.sqrt(sum((matrix**2).sum() for matrix in dense(source).values())))


def test_the_same_values_in_another_type_are_off_by_its_rounding():
    assert 1e-9 < lm.diff(A, cast(A, np.float32)).largest < 1e-6


def test_a_module_that_one_of_them_lacks_counts_as_an_error_of_one():
    fewer = replace(A, slots={t: s for t, s in A.slots.items() if t.path == "layers.0.q"})
    for pair, missing in (((A, fewer), "B"), ((fewer, A), "A")):
        found = lm.diff(*pair)
        assert found.missing == ["layers.0.v"]
        assert by_name(found)["layers.0.v"].missing == missing
        assert found.largest == 1.0
        with pytest.raises(VerificationError, match=rf"1 of 2 modules .* layers.0.v is missing in {missing}"):
            found.check(0.5)


def test_zero_updates_have_no_cosine_and_no_nan():
    nothing = zero(A)
    assert lm.diff(nothing, nothing).error == 0.0
    assert lm.diff(A, nothing).error == 1.0
    found = lm.diff(nothing, A)
    assert found.error == np.inf
    assert found.to_dict()["error"] is None
    assert found.modules[0].to_dict() == {
        "name": "layers.0.q", "error": None, "cosine": None, "norm_ratio": None, "missing": None,
    }  # fmt: skip
    with pytest.raises(VerificationError, match="off by inf"):
        found.check(1e9)


def test_tensors_that_are_no_pair_are_compared_too():
    head = np.arange(6.0).reshape(2, 3)
    cases = {"same": head, "other": 2 * head, "reshaped": head.T, "gone": None}
    errors = {}
    for name, value in cases.items():
        second = replace(A, extras={} if value is None else {"head": Held(value)})
        errors[name] = by_name(lm.diff(replace(A, extras={"head": Held(head)}), second))["head"].error
    assert errors == {"same": 0.0, "other": 1.0, "reshaped": pytest.approx(2**0.5), "gone": 1.0}


def test_other_shapes_and_nan_are_refused_by_name():
    other = random_adapters(0, [3], {"layers.0.q": (7, 8)})[0]
    with pytest.raises(IncompatibleError, match=r"layers.0.q is 7×9 in source0 but 7×8"):
        lm.diff(A, replace(other, name="b"))
    spoilt = changed(A, lambda u: LowRank(u.up * np.nan, u.down, u.scale))
    with pytest.raises(SourceError, match=r"layers.0.q holds NaN"):
        lm.diff(A, spoilt)


def test_the_result_does_not_depend_on_the_threads():
    assert lm.diff(A, B, threads=1).to_dict() == lm.diff(A, B, threads=4).to_dict()


def test_a_notebook_shows_the_table():
    assert "cosine" in lm.diff(A, B)._repr_html_()


def test_assert_adapters_close_passes_and_names_the_worst_modules():
    assert_adapters_close(cast(A, np.float32), A)
    assert_adapters_close(A, A, max_error=0)
    with pytest.raises(AssertionError) as caught:
        assert_adapters_close(changed(A, lambda u: 1.25 * u), A, max_error=0.2)
    head, columns, *rows = str(caught.value).splitlines()
    assert head.startswith("2 of 2 modules differ by more than 0.2 of their norm; layers.0.")
    assert columns.split() == ["module", "error", "cosine", "‖B‖/‖A‖"]
    assert [row.split()[1:] for row in rows] == [["2.5e-01", "1.000", "1.250"]] * 2
