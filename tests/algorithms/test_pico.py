"""Pico by hand, and where the published form depends on how an update is split into factors."""

import numpy as np
import pytest

from loramerge import LowRank, Pico
from tests.algorithms.spectral import calibrated, pico_by, ties_of
from tests.algorithms.test_iso_c import dense_of, unit
from tests.helpers.adapters import changed, dense, distance, merged, random_adapters, zero

SHAPES = {"q": (40, 50)}


def test_by_hand():
    """Shares 3/4 and 1/4: a = 4/7 and 4/5, the sum diag(12/7, 4/5), and its norm becomes (3 + 1)/2."""
    calmed = np.diag([12 / 7, 4 / 5])
    found = dense_of(unit([3, 0], [1, 0]), unit([0, 1], [0, 1]), method=Pico())
    assert found == pytest.approx(2 * calmed / np.linalg.norm(calmed))


def test_a_direction_that_all_share_is_turned_down_and_what_is_of_one_alone_is_not():
    """Two sources write e₁, one of them also e₂: against the sum, e₁ falls behind."""
    both = [unit([1, 0], [1, 0]), unit([1, 0], [0, 1]), unit([0, 1], [0, 1])]
    plain, calm = dense_of(*both, method="linear"), dense_of(*both, method=Pico())
    assert np.linalg.norm(calm[0]) / np.linalg.norm(calm[1]) < np.linalg.norm(plain[0]) / np.linalg.norm(
        plain[1]
    )


def test_the_merge_is_as_strong_as_its_sources_are_on_average():
    sources, weights = random_adapters(81, (4, 3, 5), SHAPES), [1.0, -2.0, 0.5]
    lengths = [np.linalg.norm(w * dense(s)["q"]) for w, s in zip(weights, sources, strict=True)]
    (found,) = merged(sources, Pico(), weights).values()
    assert np.linalg.norm(found) == pytest.approx(np.mean(lengths))


def test_silent_sources_are_not_counted():
    """T is the number of sources that have anything to say: not that of the folders on the command line."""
    sources = random_adapters(82, (4, 3), SHAPES)
    more = [*sources, zero(sources[0]), *random_adapters(83, (2,), SHAPES)]
    assert distance(merged(more, Pico(), [1, 1, 1, 0]), merged(sources, Pico())) < 1e-12


def test_a_weight_is_a_strength_of_the_source():
    sources = random_adapters(84, (4, 3), SHAPES)
    stronger = [changed(s, lambda u, w=w: u * w) for s, w in zip(sources, (3.0, -0.5), strict=True)]
    assert distance(merged(sources, Pico(), [3.0, -0.5]), merged(stronger, Pico())) < 1e-12


def test_with_factors_as_stored_it_depends_on_how_they_are_split():
    """(7 B, A/7) is the same update. As published it makes another merge; ours is the same."""
    a, b = random_adapters(85, (4, 4), SHAPES)
    split = changed(a, lambda u: LowRank(u.up * 7, u.down / 7, u.scale))

    def published(sources):
        updates = [next(iter(s.values())) for s in sources]
        return {"q": calibrated([u.dense() for u in updates], np.hstack([u.scale * u.up for u in updates]))}

    assert distance(published([split, b]), published([a, b])) > 0.1
    assert distance(merged([split, b], Pico()), merged([a, b], Pico())) < 1e-12


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_before_a_rule_it_is_the_plain_loop(density):
    sources, weights = random_adapters(86, (4, 3, 5), SHAPES), [1.0, -2.0, 0.5]
    found = merged(sources, Pico(rule="ties", density=density), weights)
    assert distance(found, pico_by(sources, weights, rule=ties_of(density))) < 1e-9


def test_what_cancels_is_not_brought_to_full_strength():
    (a,) = random_adapters(77, (3,), SHAPES)
    found = merged([a, a], Pico(), [1.0, -1.0])
    assert max(np.abs(matrix).max() for matrix in found.values()) < 1e-6


def test_both_sides_by_hand():
    """Shares 3/4 and 1/4 on either side: diag(3 · (4/7)², (4/5)²), and its norm becomes 2."""
    calmed = np.diag([3 * 16 / 49, 16 / 25])
    found = dense_of(unit([3, 0], [1, 0]), unit([0, 1], [0, 1]), method=Pico(sides="both"))
    assert found == pytest.approx(2 * calmed / np.linalg.norm(calmed))
