import numpy as np
import pytest

from loramerge import Adapter, LowRank, combine
from loramerge.errors import UsageError
from tests.helpers.adapters import dense, distance, merged, random_adapters


def diagonal(*values):
    return Adapter.of({"q": LowRank(np.eye(2), np.diag(np.array(values, float)))})


def test_by_hand():
    """Halfway between diag(1, 0) and diag(0, 3) is the diagonal; the mean norm is 2: diag(√2, √2)."""
    found = merged([diagonal(1, 0), diagonal(0, 3)], "karcher")["q"]
    assert found == pytest.approx(np.diag([2**0.5] * 2), abs=1e-14)


def test_directions_on_a_circle_have_the_mean_angle():
    """0°, 30° and 90° with weights 1, 1, 2: 52.5°, where the mean of the vectors points to 56.2°."""
    angles, weights = np.radians([0, 30, 90]), [1, 1, 2]
    sources = [diagonal(np.cos(a), np.sin(a)) for a in angles]
    found = merged(sources, "karcher", weights)["q"].diagonal()
    assert np.degrees(np.arctan2(found[1], found[0])) == pytest.approx(52.5, abs=1e-8)
    assert np.linalg.norm(found) == pytest.approx(1)


def plain(updates, weights, steps=500):
    """The published iteration on dense vectors."""
    p = np.array(weights) / np.sum(weights)
    norms = [np.linalg.norm(u) for u in updates]
    units = [u / n for u, n in zip(updates, norms, strict=True)]
    mean = sum(a * u for a, u in zip(p, units, strict=True))
    mean = mean / np.linalg.norm(mean)
    for _ in range(steps):
        angles = [np.arccos(np.clip((mean * u).sum(), -1, 1)) for u in units]
        step = sum(
            a * x / np.sin(x) * (u - np.cos(x) * mean)
            for a, x, u in zip(p, angles, units, strict=True)
            if x > 1e-12
        )
        length = np.linalg.norm(step)
        if length < 1e-14:
            break
        mean = np.cos(length) * mean + np.sin(length) * step / length
    return (p @ norms) * mean


@pytest.mark.parametrize("weights", [[1, 1, 1], [0.5, 2, 1]], ids=str)
def test_it_is_the_published_iteration_in_every_module(weights):
    for seed in range(5):
        sources = random_adapters(seed, (3, 2, 4))
        found = merged(sources, "karcher", weights)
        wanted = {path: plain([dense(a)[path] for a in sources], weights) for path in found}
        assert distance(found, wanted) < 1e-9


@pytest.mark.parametrize("weights", [[1, 1], [3, 1]], ids=str)
def test_of_two_updates_of_one_norm_it_is_slerp(weights):
    a, b = random_adapters(3, (3, 2), {"q": (7, 9)})
    pair = [
        Adapter.of({"q": s["q"] * (1 / s["q"].norm())}) for s in ({"q": x[next(iter(x))]} for x in (a, b))
    ]
    assert distance(merged(pair, "karcher", weights), merged(pair, "slerp", weights)) < 1e-9


def test_where_the_directions_cancel_the_plain_mean_is_taken():
    """diag(1, 0) and diag(−3, 0): no direction lies between them; (1 − 3)/2 = −1."""
    assert merged([diagonal(1, 0), diagonal(-3, 0)], "karcher")["q"].tolist() == [[-1, 0], [0, 0]]


def test_an_opposite_update_that_weighs_less_shortens_nothing():
    """Towards diag(−1, 0) no arc is the shortest one, so the direction of the stronger stays."""
    assert merged([diagonal(1, 0), diagonal(-1, 0)], "karcher", [3, 1])["q"] == pytest.approx(np.diag([1, 0]))


def test_a_source_without_the_module_counts_in_the_norm_and_not_in_the_direction():
    other = Adapter.of({"v": LowRank(np.eye(2), np.eye(2))})
    found = merged([diagonal(3, 4), other], "karcher", [3, 1])
    assert found["q"] == pytest.approx(np.diag([2.25, 3.0]), abs=1e-14)
    assert found["v"] == pytest.approx(np.eye(2) / 4, abs=1e-14)


def test_fewer_steps_stop_on_the_way():
    sources = random_adapters(1, (3, 2, 4))
    near, far = (merged(sources, "karcher", [1, 2, 5], iterations=n) for n in (1000, 1))
    assert 1e-6 < distance(far, near) < 0.3
    assert distance(merged(sources, "karcher", [1, 2, 5], tolerance=0.5), near) > 1e-6


def test_there_is_no_direction_away_from_an_update():
    with pytest.raises(UsageError, match=r"source 2 has -1\. To subtract a skill use method='linear'"):
        combine([diagonal(1, 0)] * 2, "karcher", weights=[2, -1])
