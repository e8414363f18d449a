import numpy as np
import pytest

from loramerge import Adapter, LowRank, Target, combine


def corner(row, column, value):
    """The 2×2 update with one entry."""
    up, down = np.zeros((2, 1)), np.zeros((1, 2))
    up[row, 0], down[0, column] = value, 1.0
    return Adapter.of({"q": LowRank(up, down)})


def test_by_hand():
    """diag(3, 0) + 2·diag(0, 2) = diag(3, 4); of rank 1 it is diag(0, 4), and 9/25 of ‖·‖² is lost."""
    sources = [corner(0, 0, 3.0), corner(1, 1, 2.0)]
    whole = combine(sources, "linear", weights=[1, 2])
    assert whole.adapter[Target("q")].dense().tolist() == [[3, 0], [0, 4]]
    assert whole.report.energy_lost == 0
    merge = combine(sources, "linear", weights=[1, 2], rank=1)
    assert merge.adapter[Target("q")].dense() == pytest.approx(np.diag([0.0, 4.0]), abs=1e-14)
    assert merge.report.energy_lost == pytest.approx(9 / 25)


def test_it_subtracts():
    """diag(3, 0) − diag(3, 0) = 0."""
    merge = combine([corner(0, 0, 3.0)] * 2, "linear", weights=[1, -1], rank=1)
    assert not merge.adapter[Target("q")].dense().any()


def test_energy_by_hand():
    """diag(3, 4): one unit keeps 16/25 = 0.64, two keep all."""
    sources = [corner(0, 0, 3.0), corner(1, 1, 4.0)]
    ranks = {e: combine(sources, "linear", energy=e).method.rank for e in (0.5, 0.64, 0.65, 1.0)}
    assert ranks == {0.5: 1, 0.64: 1, 0.65: 2, 1.0: 2}
