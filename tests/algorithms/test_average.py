import numpy as np
import pytest

from loramerge import Adapter, LowRank, Target, combine


def diagonal(*values):
    return Adapter.of({"q": LowRank(np.eye(2), np.diag(np.array(values, float)))})


def test_by_hand():
    """(1·diag(3, 0) + 3·diag(0, 2)) / 4 = diag(0.75, 1.5)."""
    merge = combine([diagonal(3, 0), diagonal(0, 2)], "average", weights=[1, 3])
    assert merge.adapter[Target("q")].dense().tolist() == [[0.75, 0], [0, 1.5]]
    assert merge.report.weights == (0.25, 0.75)


def test_a_source_without_the_module_counts_as_zero_there():
    """Of diag(3, 1) and nothing the mean is diag(1.5, 0.5)."""
    other = Adapter.of({"v": LowRank(np.eye(2), np.eye(2))})
    merge = combine([diagonal(3, 1), other], "average", allow_disjoint=True)
    assert merge.adapter[Target("q")].dense().tolist() == [[1.5, 0], [0, 0.5]]
    assert merge.adapter[Target("v")].dense().tolist() == [[0.5, 0], [0, 0.5]]


def test_factors_are_not_averaged_apart():
    """Of I·I and (−I)·(−I), one update twice, the mean is I; mean(B)·mean(A) would be 0."""
    other = Adapter.of({"q": LowRank(-np.eye(2), -np.eye(2))})
    merge = combine([diagonal(1, 1), other], "average", rank=2)
    assert merge.adapter[Target("q")].dense() == pytest.approx(np.eye(2))
