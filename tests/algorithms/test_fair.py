import numpy as np
import pytest

from loramerge import Adapter, LowRank, combine
from tests.helpers.adapters import dense, distance, merged, random_adapters, weighted

SEEDS = range(6)


def one(up, down):
    return Adapter.of({"q": LowRank(np.array(up, float), np.array(down, float))})


def test_by_hand():
    """B = 1, 3 and A = (1, 0), (0, 1): Ā = (½, ½), mean (½, 3/2), B = (½·½ + 3/2·½) / ½ = 2: (1, 1)."""
    assert merged([one([[1]], [[1, 0]]), one([[3]], [[0, 1]])], "fair", ridge=0.0)["q"].tolist() == [[1, 1]]


def test_the_ridge_by_hand():
    """B = 2, 0 and A = (2, 0), (0, 0): the mean is (2, 0), B̄ = 1, Ā = (1, 0), ΔB = (2 − 1)/(1 + λ)."""
    pair = [one([[2]], [[2, 0]]), one([[0]], [[0, 0]])]
    for ridge, b in ((0.0, 2.0), (1.0, 1.5), (3.0, 1.25)):
        assert merged(pair, "fair", ridge=ridge)["q"] == pytest.approx(np.array([[b, 0.0]]), abs=1e-15)


def plain(sources, path, p, ridge):
    """The closed form on factors: B̄ + ΔB and Ā."""
    updates = [next(s[t] for t in s if t.path == path) for s in sources]
    ups, downs = [u.up * u.scale for u in updates], [u.down for u in updates]
    b, a = np.tensordot(p, ups, 1), np.tensordot(p, downs, 1)
    mean = sum(w * up @ down for w, up, down in zip(p, ups, downs, strict=True))
    delta = (mean @ a.T - b @ a @ a.T) @ np.linalg.inv(a @ a.T + ridge * np.eye(len(a)))
    return mean, b, delta, a


@pytest.mark.parametrize("ridge", [0.0, 0.01, 2.0])
def test_it_is_the_closed_form_and_a_minimum(ridge):
    p = np.array([0.2, 0.3, 0.5])
    for seed in SEEDS:
        sources = random_adapters(seed, (3, 3, 3), scale=0.5)
        for path, found in merged(sources, "fair", p, ridge=ridge).items():
            mean, b, delta, a = plain(sources, path, p, ridge)
            assert found == pytest.approx((b + delta) @ a, abs=1e-11)
            gradient = -2 * (mean - (b + delta) @ a) @ a.T + 2 * ridge * delta
            assert np.abs(gradient).max() < 1e-10


def test_without_a_ridge_the_error_is_the_floor_and_below_that_of_fedavg():
    for seed in SEEDS:
        sources = random_adapters(seed, (2, 2, 2))
        fair, ridged, fedavg = (
            combine(sources, method, dtype="float64", **options).report.modules
            for method, options in (("fair", {"ridge": 0.0}), ("fair", {"ridge": 5.0}), ("fedavg", {}))
        )
        for best, some, biased in zip(fair, ridged, fedavg, strict=True):
            assert best.facts["error"] == pytest.approx(best.facts["floor"], rel=1e-9)
            assert best.facts["error"] < some.facts["error"] < biased.facts["error"]
            assert best.facts["cosine"] > some.facts["cosine"] > biased.facts["cosine"]
            assert best.facts["floor"] == pytest.approx(biased.facts["floor"], rel=1e-9)


def test_the_facts_are_those_of_dense_matrices():
    p = np.array([0.25, 0.75])
    sources = random_adapters(7, (3, 3))
    merge, means = combine(sources, "fair", weights=p, dtype="float64"), weighted(sources, p)
    for module in merge.report.modules:
        found, mean = dense(merge.adapter)[module.name], means[module.name]
        _, _, _, a = plain(sources, module.name, p, 0.0)
        outside = mean - mean @ np.linalg.pinv(a) @ a
        size = np.linalg.norm(mean)
        assert module.facts["error"] == pytest.approx(np.linalg.norm(found - mean) / size)
        assert module.facts["floor"] == pytest.approx(np.linalg.norm(outside) / size)
        cosine = (found * mean).sum() / size / np.linalg.norm(found)
        assert module.facts["cosine"] == pytest.approx(cosine)
        assert module.facts["error"] ** 2 == pytest.approx(module.energy_lost)


def test_the_mean_a_stays_for_the_next_round():
    sources = random_adapters(1, (3, 3))
    merge = combine(sources, "fair", dtype="float64")
    for target in merge.adapter:
        mean = (sources[0][target].down + sources[1][target].down) / 2
        assert merge.adapter[target].down == pytest.approx(mean, abs=1e-15)


def test_adapters_that_share_a_are_merged_exactly():
    sources = random_adapters(2, (3, 3))
    shared = [Adapter.of({t.path: LowRank(s[t].up, sources[0][t].down) for t in s}) for s in sources]
    assert distance(merged(shared, "fair", ridge=7.0), weighted(shared, [0.5, 0.5])) < 1e-12


def test_a_mean_a_with_fewer_directions_than_units_is_no_obstacle():
    """Where the A of two sources cancel, nothing can be reached, and nothing overflows."""
    merge = combine([one([[1], [2]], [[1, 0]]), one([[1], [2]], [[-1, 0]])], "fair", ridge=0.0)
    assert not dense(merge.adapter)["q"].any()
    twice = [one([[1, 1], [0, 2]], [[1, 2], [2, 4]]), one([[3, 1], [1, 1]], [[0, 0], [0, 0]])]
    assert merged(twice, "fair", ridge=0.0)["q"] == pytest.approx(np.array([[1.5, 3.0], [2.0, 4.0]]))
