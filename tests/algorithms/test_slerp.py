import numpy as np
import pytest

from loramerge import Adapter, LowRank, Target, combine
from loramerge.errors import UsageError
from tests.helpers.adapters import dense, distance, merged, random_adapters, truncated


def diagonal(*values):
    return Adapter.of({"q": LowRank(np.eye(2), np.diag(np.array(values, float)))})


def test_by_hand():
    """At a right angle and t = 1/3: sin 60° · diag(2, 0) + sin 30° · diag(0, 2) = diag(√3, 1), of norm 2."""
    merge = combine([diagonal(2, 0), diagonal(0, 2)], "slerp", weights=[2, 1])
    assert merge.adapter[Target("q")].dense() == pytest.approx(np.diag([3**0.5, 1.0]), abs=1e-14)
    assert merge.report.norm_ratios == pytest.approx([1, 1])


def test_an_angle_of_60_degrees_by_hand():
    """diag(2, 0) and diag(1, √3) at t = 1/2: both times sin 30° / sin 60° = 1/√3: diag(√3, 1)."""
    merge = combine([diagonal(2, 0), diagonal(1, 3**0.5)], "slerp")
    assert merge.adapter[Target("q")].dense() == pytest.approx(np.diag([3**0.5, 1.0]), abs=1e-14)


def plain(first, second, t, threshold=0.9995):
    """The published formula on dense matrices."""
    cosine = (first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second)
    if abs(cosine) > threshold:
        return (1 - t) * first + t * second
    theta = np.arccos(cosine)
    return (np.sin((1 - t) * theta) * first + np.sin(t * theta) * second) / np.sin(theta)


@pytest.mark.parametrize("weights", [[1, 1], [0.2, 0.8], [3, 0], [2, -0.5]], ids=str)
def test_it_is_the_published_formula_in_every_module(weights):
    for seed in range(5):
        a, b = random_adapters(seed, (3, 2))
        found, t = merged([a, b], "slerp", weights), weights[1] / sum(weights)
        wanted = {path: plain(dense(a)[path], dense(b)[path], t) for path in found}
        assert distance(found, wanted) < 1e-13


@pytest.mark.parametrize("sign", [1, -1])
def test_nearly_parallel_and_opposite_updates_are_interpolated_in_a_straight_line(sign):
    """cos = ±1/√(1 + 0.02²) = ±0.9998: at t = 1/4 it is ¾ diag(1, 0) ± ¼ diag(1, 0.02)."""
    pair = [diagonal(1, 0), diagonal(sign, sign * 0.02)]
    wanted = np.diag([0.75 + sign * 0.25, sign * 0.005])
    assert merged(pair, "slerp", [3, 1])["q"] == pytest.approx(wanted, abs=1e-15)
    curved = merged(pair, "slerp", [3, 1], dot_threshold=1.0)["q"]
    assert curved == pytest.approx(plain(*(dense(s)["q"] for s in pair), 0.25, 1.0), abs=1e-12)
    assert np.abs(curved - wanted).max() > (1e-7 if sign > 0 else 1e-2)


def test_a_module_of_one_source_is_interpolated_towards_nothing():
    other = Adapter.of({"v": LowRank(np.eye(2), np.eye(2))})
    found = merged([diagonal(4, 8), other], "slerp", [3, 1])
    assert found["q"].tolist() == [[3, 0], [0, 6]]
    assert found["v"].tolist() == [[0.25, 0], [0, 0.25]]


def test_three_adapters_are_too_many():
    with pytest.raises(
        UsageError, match=r"from one adapter to another, and 3 have a weight: use method='karcher'"
    ):
        combine([diagonal(1, 0)] * 3, "slerp")
    two = merged([diagonal(2, 0), diagonal(5, 5), diagonal(0, 2)], "slerp", [1, 0, 1])
    assert two["q"] == pytest.approx(np.diag([2**0.5] * 2), abs=1e-14)


def test_the_report_tells_the_cut_of_a_rank_from_the_arc():
    """diag(√3, 1) to rank 1 loses 1/4 of its square; the mean diag(4/3, 2/3) is something else."""
    report = combine([diagonal(2, 0), diagonal(0, 2)], "slerp", weights=[2, 1], rank=1).report
    assert report.cut == pytest.approx(0.25)
    assert report.energy_lost == pytest.approx(((3**0.5 - 4 / 3) ** 2 + (2 / 3) ** 2) / (20 / 9))


def test_whole_adapters_have_one_angle():
    """diag(2, 0), diag(0, 2) in q and twice diag(2, 0) in v: the cosine is 4/8, and c is 1/√3 each."""
    first, second = (
        Adapter.of({"q": LowRank(np.eye(2), np.diag(q)), "v": LowRank(np.eye(2), np.diag([2.0, 0.0]))})
        for q in ([2.0, 0.0], [0.0, 2.0])
    )
    found = merged([first, second], "slerp", scope="adapter")
    assert found["q"] == pytest.approx(np.diag([2.0, 2.0]) / 3**0.5)
    assert found["v"] == pytest.approx(np.diag([4.0, 0.0]) / 3**0.5)
    alone = merged([first, second], "slerp")
    assert alone["q"] == pytest.approx(np.diag([2.0, 2.0]) / 2**0.5)
    assert alone["v"] == pytest.approx(np.diag([2.0, 0.0]))


@pytest.mark.parametrize("options", [{"total_rank": 6}, {"energy": 0.8}], ids=str)
def test_whole_adapters_can_be_made_to_fit(options):
    """Coefficients are settled first, then the ranks: the best approximation of the same mixture."""
    sources = random_adapters(1, (3, 4))
    whole = merged(sources, "slerp", scope="adapter")
    merge = combine(sources, "slerp", scope="adapter", dtype="float64", profile="compact", **options)
    ranks = {t.path: merge.adapter.slots[t].rank for t in merge.adapter}
    assert sum(ranks.values()) < 14
    best = {path: truncated(matrix, ranks[path]) for path, matrix in whole.items()}
    assert distance(dense(merge.adapter), best) < 1e-7


def test_the_record_says_how_coefficients_were_chosen_and_not_what_they_are():
    merge = combine(random_adapters(1, (3, 4)), "slerp", scope="adapter")
    assert merge.method.options() == {
        "rank": None,
        "energy": None,
        "scope": "adapter",
        "dot_threshold": 0.9995,
    }
