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
