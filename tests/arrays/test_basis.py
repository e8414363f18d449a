"""Orthonormal bases of all units, and the sources as cores in them."""

from dataclasses import replace

import numpy as np
import pytest

from loramerge import Adapter
from loramerge.arrays.basis import basis
from loramerge.sources.units import Units
from tests.arrays.test_frames import CASES, near, seen
from tests.helpers.adapters import random_adapters

every_case = pytest.mark.parametrize("sources", CASES.values(), ids=CASES)


def bases_of(sources, weights=None, rank_tol=1e-7):
    units, grams = seen(sources, "spectral")
    grams = replace(grams, weights=None if weights is None else np.array(weights))
    return units, grams, basis(grams, rank_tol)


def spans(units, grams, bases, module):
    """E_up (out, R) and E_down (R, in) multiplied out."""
    up, down = units.read(module)
    lift = grams.lift
    return up @ lift.P[module] @ bases.left[module], bases.right[module].T @ lift.Q[module] @ down


def limit(sources):
    """What float64 has left where the weakest direction is 1e-7 of the strongest: 1e-16 · 1e7, and some."""
    return 1e-8 if sources is CASES["1e-6 apart"] else 1e-10


@every_case
def test_bases_are_orthonormal(sources):
    """To the rounding of the factors, times how much nearer to each other they are than to zero."""
    units, grams, bases = bases_of(sources)
    for m in range(len(units.targets)):
        e_up, e_down = spans(units, grams, bases, m)
        for e, n in ((e_up, bases.ranks[m, 0]), (e_down.T, bases.ranks[m, 1])):
            wanted = np.diag((np.arange(e.shape[1]) < n).astype(float))  # beyond the rank all is zero
            assert np.abs(e.T @ e - wanted).max() < limit(sources)


@every_case
def test_bases_span_what_the_units_span(sources):
    units, grams, bases = bases_of(sources)
    for m in range(len(units.targets)):
        up, down = units.read(m)
        e_up, e_down = spans(units, grams, bases, m)
        assert np.linalg.norm(up - e_up @ (e_up.T @ up)) < 1e-6 * np.linalg.norm(up)
        assert np.linalg.norm(down - (down @ e_down.T) @ e_down) < 1e-6 * np.linalg.norm(down)


@every_case
def test_a_core_is_the_update_in_the_bases(sources):
    units, grams, bases = bases_of(sources)
    for m, target in enumerate(units.targets):
        e_up, e_down = spans(units, grams, bases, m)
        for s, source in enumerate(sources):
            dense, core = source[target].dense(), bases.core(grams, s)[m]
            assert np.linalg.norm(core - e_up.T @ dense @ e_down.T) < limit(sources) * np.linalg.norm(dense)
            assert np.linalg.norm(dense - e_up @ core @ e_down) < 1e-6 * np.linalg.norm(dense)


def test_the_weighted_sum_is_that_of_the_cores():
    sources, weights = CASES["random"], [1.0, -0.5, 2.0]
    _, grams, bases = bases_of(sources, weights)
    total = sum(w * bases.core(grams, s) for s, w in enumerate(weights))
    assert bases.weighted_sum(grams) == pytest.approx(total)


def test_a_source_of_weight_zero_spans_nothing():
    (a, b, c), weights = CASES["random"], [1.0, 0.0, 2.0]
    _, grams, bases = bases_of([a, b, c], weights)
    _, _, without = bases_of([a, c], [1.0, 2.0])
    assert bases.ranks.tolist() == without.ranks.tolist()
    assert not bases.core(grams, 1).any()


RANKS = {  # of up and of down in both modules: a common A, then a common B
    "as wide as the tolerance": (1e-6, 1e-7, [[16, 16], [16, 16]]),
    "below the tolerance": (1e-6, 1e-5, [[16, 4], [4, 16]]),
    "the same": (0.0, 1e-7, [[16, 4], [4, 16]]),
}


@pytest.mark.parametrize(("offset", "tolerance", "ranks"), RANKS.values(), ids=RANKS)
def test_the_tolerance_tells_directions_from_noise(offset, tolerance, ranks):
    assert bases_of(near(offset), rank_tol=tolerance)[2].ranks.tolist() == ranks


def test_there_are_no_more_directions_than_rows_or_columns():
    _, _, bases = bases_of(CASES["more units than rows or columns"])
    assert bases.ranks.tolist() == [[5, 6], [6, 5]]


def test_the_strongest_direction_comes_first():
    _, _, bases = bases_of(CASES["random"])
    for reach in (bases.reach_up, bases.reach_down):
        strength = np.linalg.norm(reach, axis=2)
        assert (np.diff(strength, axis=1) <= 1e-12).all()


def test_what_else_is_in_the_batch_changes_no_bit():
    plain = random_adapters(7, (4,) * 4, dict.fromkeys("abqv", (24, 30)))
    close = near(1e-5)
    mixed = [
        Adapter.of({str(t): (c if t in c else p)[t] for t in p}) for p, c in zip(plain, close, strict=True)
    ]
    units, _, together = bases_of(mixed)
    for m, target in enumerate(units.targets):
        grams = Units((target,), units.adapters, units.signature).seen("spectral")[1]
        alone = basis(grams, 1e-7)
        for name in ("reach_up", "reach_down", "left", "right", "ranks"):
            assert np.array_equal(getattr(alone, name)[0], getattr(together, name)[m])
