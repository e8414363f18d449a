"""Frames: every source in a gauge of its own, with halves that have their digits."""

from dataclasses import replace

import numpy as np
import pytest

from loramerge import Adapter, LowRank
from loramerge.arrays.frames import canonical, framed, spectral
from loramerge.sources.units import Units
from tests.helpers.adapters import random_adapters, units_of, update


def near(offset, count=4, rank=4, shape=(24, 30), modules=("q", "v")):
    """Adapters of one common A (`offset` apart) and, in the second module, of one common B."""
    rng = np.random.default_rng(31)
    common = rng.standard_normal((rank, shape[1])), rng.standard_normal((shape[0], rank))

    def one(module):
        u = update(rng, rank, shape)
        if module == "q":
            return LowRank(u.up, common[0] + offset * u.down)
        return LowRank(common[1] + offset * u.up, u.down)

    return [Adapter.of({module: one(module) for module in modules}) for _ in range(count)]


CASES = {
    "random": random_adapters(1, (3, 2, 4)),
    "more units than rows or columns": random_adapters(2, (4, 5, 3), {"q": (5, 6), "v": (6, 5)}),
    "1e-2 apart": near(1e-2),
    "1e-4 apart": near(1e-4),
    "1e-6 apart": near(1e-6),
    "the same A, then the same B": near(0.0),
}
every_case = pytest.mark.parametrize("sources", CASES.values(), ids=CASES)
every_frame = pytest.mark.parametrize("frame", ["balanced", "halved", "canonical", "spectral"])


def seen(sources, frame):
    """(units of one batch, their Grams in a frame)"""
    (units,) = units_of(sources)
    return units, units.seen(frame)[1]


def factors(units, grams, module):
    """up and down of the units of a frame, multiplied out."""
    up, down = units.read(module)
    return up @ grams.lift.P[module], grams.lift.Q[module] @ down


@every_case
@every_frame
def test_a_frame_is_another_way_to_write_the_same_updates(sources, frame):
    units, grams = seen(sources, frame)
    for m, target in enumerate(units.targets):
        up, down = factors(units, grams, m)
        for s, source in enumerate(sources):
            mine = grams.of(s)
            wanted = source[target].dense()
            assert np.linalg.norm(up[:, mine] @ down[mine] - wanted) < 1e-7 * np.linalg.norm(wanted)


@every_case
@every_frame
def test_grams_and_halves_of_a_frame_are_those_of_its_units(sources, frame):
    units, grams = seen(sources, frame)
    for m in range(len(units.targets)):
        up, down = factors(units, grams, m)
        scale = np.linalg.norm(up) * np.linalg.norm(down)
        assert np.linalg.norm(up.T @ up - grams.up[m]) < 1e-7 * scale
        assert np.linalg.norm(down @ down.T - grams.down[m]) < 1e-7 * scale
        for half, gram in zip(grams.halves or (), (grams.up, grams.down), strict=False):
            assert np.linalg.norm(half[m].T @ half[m] - gram[m]) < 1e-13 * scale


@every_case
@pytest.mark.parametrize("frame", ["canonical", "spectral"])
def test_canonical_units_of_a_source_are_its_balanced_singular_units(sources, frame):
    units, grams = seen(sources, frame)
    for m, target in enumerate(units.targets):
        for s, source in enumerate(sources):
            mine = grams.of(s)
            sigma = np.linalg.svd(source[target].dense(), compute_uv=False)
            wanted = np.diag(np.pad(sigma, (0, max(0, len(mine) - len(sigma))))[: len(mine)])
            for gram in (grams.up[m], grams.down[m]):
                assert np.abs(gram[np.ix_(mine, mine)] - wanted).max() < 1e-7 * sigma[0]


def test_one_update_in_two_gauges_becomes_the_same_units():
    rng = np.random.default_rng(3)
    a, b = random_adapters(4, (3, 3), {"q": (7, 9)})
    mix = rng.standard_normal((3, 3))
    u = a["q"] if "q" in a else a[next(iter(a))]
    other = Adapter.of({"q": LowRank(u.up @ mix, np.linalg.solve(mix, u.down), u.scale)})
    for frame in (canonical, spectral):
        first, second = (frame(units_of([one, b])[0].grams()) for one in (a, other))
        for one, two in ((first.up, second.up), (first.down, second.down)):  # up to joint signs
            assert np.abs(one) == pytest.approx(np.abs(two), abs=1e-9)


def test_a_unit_held_twice_is_one_unit_and_one_that_is_not_live():
    u = update(np.random.default_rng(5), 2)
    twice = Adapter.of({"q": LowRank(np.hstack([u.up, u.up]), np.vstack([u.down, u.down]))})
    for frame in ("canonical", "spectral"):
        assert seen([twice], frame)[1].live.tolist() == [[True, True, False, False]]


def test_a_zero_adapter_is_not_live_in_any_frame():
    a, b = random_adapters(6, (2, 3), {"q": (7, 9)})
    silent = Adapter.of({str(t): 0.0 * a[t] for t in a})
    for frame in ("balanced", "halved", "canonical", "spectral"):
        assert seen([silent, b], frame)[1].live.tolist() == [[False] * 2 + [True] * 3]


@pytest.mark.parametrize("offset", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_spectral_halves_keep_the_digits_of_what_is_left_between_near_adapters(offset):
    """The smallest singular values of the stacked factors, relative to themselves; a Gram loses them."""
    units, grams = seen(near(offset), "spectral")
    for m in range(2):
        sides = factors(units, grams, m)
        for half, side in zip(grams.halves, (sides[0], sides[1].T), strict=True):
            exact = np.linalg.svd(side, compute_uv=False)
            found = np.linalg.svd(half[m], compute_uv=False)
            assert np.abs(found / exact - 1).max() < 1e-9


def test_halves_of_grams_would_have_lost_them():
    units, grams = seen(near(1e-6), "halved")
    _, down = factors(units, grams, 0)
    exact = np.linalg.svd(down, compute_uv=False)
    found = np.linalg.svd(grams.halves[1][0], compute_uv=False)
    assert np.abs(found / exact - 1).max() > 1e-4


@every_frame
def test_what_else_is_in_the_batch_changes_no_bit(frame):
    shapes = {"a": (24, 30), "b": (18, 25), "c": (24, 30), "q": (24, 30), "v": (24, 30)}
    plain = random_adapters(7, (4, 4, 4, 4), shapes)
    close = near(1e-5)  # q by QR of its factors, the others by Grams
    mixed = [
        Adapter.of({str(t): (c if t in c else p)[t] for t in p}) for p, c in zip(plain, close, strict=True)
    ]
    units, together = seen(mixed, frame)
    for m, target in enumerate(units.targets):
        alone = Units((target,), units.adapters, units.signature).seen(frame)[1]
        pairs = [(alone.up, together.up), (alone.down, together.down), (alone.live, together.live)]
        pairs += [(alone.lift.P, together.lift.P), (alone.lift.Q, together.lift.Q)]
        pairs += zip(alone.halves or (), together.halves or (), strict=True)
        assert all(np.array_equal(one[0], many[m]) for one, many in pairs)


def test_a_frame_of_frames_is_the_frame():
    _, grams = seen(CASES["random"], "canonical")
    again = canonical(grams)
    assert np.abs(again.up) == pytest.approx(np.abs(grams.up), abs=1e-10)
    assert framed(grams, "balanced") is grams
    assert replace(grams).live.all()


@pytest.mark.parametrize("offset", [1e-3, 1e-4, 1e-5, 1e-6])
def test_spectral_halves_are_as_exact_as_a_qr_of_the_factors(offset):
    """Bases made from either are orthonormal alike."""
    units, grams = seen(near(offset), "spectral")
    for m in range(2):
        up, down = factors(units, grams, m)
        for half, side in zip(grams.halves, (up, down.T), strict=True):
            apart = []
            for triangle in (half[m], np.linalg.qr(side, mode="r")):
                _, sigma, wt = np.linalg.svd(triangle)
                e = side @ (wt.T / sigma)
                apart.append(np.abs(e.T @ e - np.eye(len(sigma))).max())
            assert apart[0] < 10 * apart[1]
