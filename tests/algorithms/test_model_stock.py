import numpy as np
import pytest

from loramerge import Adapter, LowRank, combine
from tests.helpers.adapters import dense, distance, merged, random_adapters


def diagonal(*values):
    return Adapter.of({"q": LowRank(np.eye(2), np.diag(np.array(values, float)))})


def test_by_hand():
    """diag(4, 0) and diag(4, 3): cos 4/5, t = 2·0.8/1.8 = 8/9 of the mean diag(4, 1.5)."""
    found = merged([diagonal(4, 0), diagonal(4, 3)], "model_stock")["q"]
    assert found == pytest.approx(np.diag([32 / 9, 4 / 3]), abs=1e-14)


def test_weights_move_the_mean_and_not_its_strength():
    """(3·diag(4, 0) + diag(4, 3)) / 4 = diag(4, 0.75), times 8/9."""
    found = merged([diagonal(4, 0), diagonal(4, 3)], "model_stock", [3, 1])["q"]
    assert found == pytest.approx(np.diag([32 / 9, 2 / 3]), abs=1e-14)


def plain(updates):
    """The published formula on dense matrices, t kept within 0 … 1."""
    flat = np.array([u.ravel() / np.linalg.norm(u) for u in updates])
    n = len(flat)
    cosine = np.mean([flat[i] @ flat[j] for i in range(n) for j in range(i)])
    return np.clip(n * cosine / (1 + (n - 1) * cosine), 0, 1) * np.mean(updates, axis=0)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_it_is_the_published_formula_in_every_module(count):
    for seed in range(5):
        sources = random_adapters(seed, range(1, count + 1))
        near = [Adapter.of({p.path: a[p] + 2.0 * sources[0][p] for p in a}) for a in sources]
        found = merged(near, "model_stock")
        wanted = {path: plain([dense(a)[path] for a in near]) for path in found}
        assert all(matrix.any() for matrix in wanted.values())
        assert distance(found, wanted) < 1e-13


@pytest.mark.parametrize("second", [(0, 3), (-1, 5), (-4, 0)], ids=str)
def test_updates_at_a_right_angle_or_more_leave_the_base(second):
    merge = combine([diagonal(4, 0), diagonal(*second)], "model_stock")
    assert not dense(merge.adapter)["q"].any()
    assert merge.report.norm_ratios == [0, 0]


def test_one_adapter_has_no_angle_and_stays_as_it_is():
    assert merged([diagonal(4, 3)], "model_stock")["q"].tolist() == [[4, 0], [0, 3]]


def test_a_source_without_the_module_counts_in_the_mean_and_not_in_the_angle():
    """Of diag(4, 0), diag(4, 3) and nothing it is 8/9 of diag(8, 3)/3."""
    other = Adapter.of({"v": LowRank(np.eye(2), np.eye(2))})
    found = merged([diagonal(4, 0), diagonal(4, 3), other], "model_stock")
    assert found["q"] == pytest.approx(np.diag([64 / 27, 8 / 9]), abs=1e-14)
    assert found["v"] == pytest.approx(np.eye(2) / 3, abs=1e-15)
