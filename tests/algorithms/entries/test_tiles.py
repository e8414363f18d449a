"""Entries made tile by tile: those of the matrix, in float32 where that holds them."""

from dataclasses import replace

import numpy as np
import pytest

from loramerge import Adapter, LowRank
from loramerge.algorithms.entries.tiles import tiles
from tests.helpers.adapters import cast, dense, merged, random_adapters, units_of

SHAPE = {"q": (150, 1100)}  # more than one tile both ways


def grams_of(sources, weights=None):
    grams = units_of(sources)[0].grams()
    return replace(grams, weights=np.ones(len(sources)) if weights is None else np.array(weights))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_tiles_are_the_matrix(kind):
    sources = [cast(s, kind) for s in random_adapters(3, (3, 5), SHAPE, scale=0.3)]
    entries = tiles(grams_of(sources), 0)
    assert entries.dtype == kind
    for t, source in enumerate(sources):
        whole = np.empty(entries.shape)
        for tile in entries.places():
            whole[tile] = entries.values(tile)[t, 0]
        wanted = dense(source)["q"]
        assert np.abs(whole - wanted).max() < 4 * np.finfo(kind).eps * np.abs(wanted).max() * 5


def test_sources_that_change_nothing_are_not_there():
    a, b, c = random_adapters(3, (3, 5, 2), SHAPE)
    nothing = Adapter.of({"q": LowRank(np.zeros((150, 2)), np.ones((2, 1100)))}, "untrained")
    assert tiles(grams_of([a, nothing, b, c], [1, 1, 0, 2]), 0).present == (0, 3)
    assert tiles(grams_of([a, b], [0, 0]), 0) is None


def test_numbers_that_float32_does_not_hold_well_are_float64():
    small = Adapter.of({"q": LowRank(np.full((4, 1), 2.0**-60), np.full((1, 3), 2.0**-60))})
    assert tiles(grams_of([small]), 0).dtype == np.float64
    found = merged([small], "ties", density=1.0)["q"]
    np.testing.assert_allclose(found, dense(small)["q"], rtol=1e-12)


@pytest.mark.parametrize("method", ["magnitude", "emr", "dare", "breadcrumbs"])
def test_faint_weights_scale_the_merge(method):
    """Of a module that is fitted anew in float32, where the squares of such entries are 0 or infinite."""
    sources = [cast(each, np.float32) for each in random_adapters(2, (3, 2), {"q": (270, 280)})]
    one = merged(sources, method, [1, 1])["q"]
    for weight in (1e-20, 1e-30, 1e20):
        np.testing.assert_allclose(
            merged(sources, method, [weight, weight])["q"] / weight, one, atol=1e-4 * abs(one).max()
        )
