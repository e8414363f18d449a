import numpy as np
import pytest

from loramerge import Adapter, LowRank, Target, combine


def column(index, values):
    """The 2×2 update with one column."""
    down = np.eye(2)[[index]]
    return Adapter.of({"q": LowRank(np.array(values, float)[:, None], down)})


def test_by_hand():
    """[[3 0], [4 5]] = 3√5·u₁v₁ᵀ + √5·u₂v₂ᵀ with u₁ = [1 3]/√10, v₁ = [1 1]/√2.

    So of rank 1 it is 3√5/√20·[[1 1], [3 3]] = [[1.5 1.5], [4.5 4.5]], and 5/50 of ‖·‖² is lost.
    """
    merge = combine([column(0, [3, 4]), column(1, [0, 5])], "svd", rank=1)
    update = merge.adapter[Target("q")]
    assert update.dense() == pytest.approx(np.array([[1.5, 1.5], [4.5, 4.5]]))
    assert merge.report.energy_lost == pytest.approx(0.1)


def test_the_units_are_balanced_and_strongest_first():
    """Of diag(1, 9) the factors have columns of length √9 and √1 on either side."""
    source = Adapter.of({"q": LowRank(np.eye(2), np.diag([1.0, 9.0]))})
    update = combine([source], "svd").adapter[Target("q")]
    assert np.linalg.norm(update.up, axis=0) == pytest.approx([3, 1])
    assert np.linalg.norm(update.down, axis=1) == pytest.approx([3, 1])


def test_without_a_rank_it_takes_the_largest_of_the_sources():
    merge = combine([column(0, [3, 4]), column(1, [0, 5])], "svd")
    assert merge.method.rank == 1


def spectrum_of(sigma, **options):
    source = Adapter.of({"q": LowRank(np.eye(len(sigma)), np.diag(sigma))})
    update = combine([source], "svd", **options).adapter[Target("q")]
    return np.linalg.svd(update.dense(), compute_uv=False)


def test_the_power_by_hand():
    """16, 1 at ½ are 4, 1, and as long as before: times √257/√17; a rank then takes the first."""
    wanted = np.array([4, 1]) * np.sqrt(257 / 17)
    assert spectrum_of([16.0, 1.0], power=0.5) == pytest.approx(wanted)
    assert spectrum_of([16.0, 1.0], power=0.5, rank=1) == pytest.approx([wanted[0], 0])


def test_the_boost_by_hand():
    """Of 6, 3, 1 the first two hold 90 %: 1 becomes 3. With all of Σσ nothing is raised."""
    assert spectrum_of([6.0, 3.0, 1.0], boost=0.9) == pytest.approx([6, 3, 3])
    assert spectrum_of([6.0, 3.0, 1.0], boost=1.0) == pytest.approx([6, 3, 1])
    assert spectrum_of([6.0, 3.0, 1.0], boost=0.5) == pytest.approx([6, 6, 6])


def test_rounding_is_not_boosted():
    assert spectrum_of([6.0, 1e-7], boost=0.5) == pytest.approx([6, 1e-7])


def test_a_boosted_merge_says_what_its_rank_cut():
    source = Adapter.of({"q": LowRank(np.eye(3), np.diag([6.0, 3.0, 1.0]))})
    assert combine([source], "svd", boost=0.9, rank=2).report.cut == pytest.approx(9 / 54)
