"""DC-Merge by hand."""

import numpy as np
import pytest

from loramerge import Adapter, DcMerge, LowRank
from tests.algorithms.test_iso_c import dense_of, unit
from tests.helpers.adapters import distance, merged, random_adapters


def diagonal(*sigma, at=0, size=4):
    places = range(at, at + len(sigma))
    eye = np.eye(size)[list(places)]
    return Adapter.of({"q": LowRank(eye.T * sigma, eye)})


def test_along_a_line_by_hand():
    """σ = 6, 2, 1 go along 5, 3, 1 times 1 (the same sum 9); 8 alone stays."""
    apart = merged([diagonal(6, 2, 1), diagonal(8, at=3)], DcMerge())["q"]
    assert apart == pytest.approx(np.diag([5, 3, 1, 8]))


def test_all_their_mean_by_hand():
    found = merged([diagonal(6, 2, 1), diagonal(8, at=3)], DcMerge(smooth="mean"))["q"]
    assert found == pytest.approx(np.diag([3, 3, 3, 8]))


def test_units_that_interfere_by_hand():
    """Outputs e₁ and [.6 .8] turn by 18.43° each; one entry of each source, u*·u = 3/√10, is left."""
    a, b = unit([3, 0], [1, 0]), unit([0.6, 0.8], [0, 1])
    turned = np.sqrt(0.1) * np.array([[3, 1], [-1, 3]])  # columns U*
    found = dense_of(a, b, method=DcMerge())
    assert found == pytest.approx(turned * [3, 1] * 3 / np.sqrt(10))


def test_what_one_source_writes_into_the_units_of_another_is_masked():
    """With all entries kept, e₁ = (3 u₁* + u₂*)/√10: the second part is not in the source's own block."""
    a, b = unit([3, 0], [1, 0]), unit([0.6, 0.8], [0, 1])
    assert dense_of(a, b, method=DcMerge(density=1.0)) == pytest.approx(dense_of(a, b, method=DcMerge()))


def test_a_share_of_entries_keeps_the_largest():
    """int(0.02 · 49) = 0 of them, so one of each source: two units are left of seven."""
    sources = random_adapters(64, (3, 4), {"q": (20, 24)})
    few, all_ = merged(sources, DcMerge(density=0.02)), merged(sources, DcMerge(density=1.0))
    assert np.linalg.matrix_rank(few["q"]) == 2
    assert distance(few, all_) > 0.1


@pytest.mark.parametrize("apart", [1e-4, 1e-3])
def test_near_copies_come_out_as_copies_do(apart):
    rng = np.random.default_rng(65)
    up, down = rng.standard_normal((96, 8)) * np.geomspace(1, 0.2, 8), rng.standard_normal((8, 64))

    def copies(apart):
        def near(matrix):
            return matrix + apart * rng.standard_normal(matrix.shape)

        return [Adapter.of({"q": LowRank(near(up), near(down))}) for _ in range(5)]

    exact = merged(copies(0), DcMerge())
    assert distance(merged(copies(apart), DcMerge()), exact) < 0.1
    assert distance(merged(copies(apart), DcMerge(rank_tol=1e-5)), exact) > 0.5
