"""The k-means kernel, run by real threads of the host, gives the labels of NumPy."""

import threading

import numpy as np
import pytest

from loramerge.algorithms.families.kmeans import _uniforms, centred, cluster
from loramerge.cuda.kmeans import check, desk_bytes, layout
from tests.cuda.host import NO_SHARED, PLENTY, clusters, library
from tests.cuda.stand_in import SHARED, Function, installed
from tests.helpers.device import AWAY

SIZES = [(1, 1), (2, 2), (31, 5), (32, 8), (33, 33), (64, 16), (112, 7)]  # units and clusters
LARGE = [(168, 20), (512, 64)]
EVERY = [1, 31, 32, 33, 64, 112, 168, 512]  # units, in blocks of 32 to 256 threads


def points(units, seed=0, kind="apart"):
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((2, units, 40))
    if kind == "three groups":  # which take few rounds: a round of the host's threads is slow
        found = 0.01 * found + 10 * rng.standard_normal((3, 40))[np.arange(units) % 3]
    if kind == "few directions":
        found = rng.standard_normal((2, units, 2)) @ rng.standard_normal((2, 40))
    if kind == "alike":
        found[:, units // 2 :] = found[:, : units - units // 2]
    if kind == "all alike":
        found[:] = found[:, :1]
    if kind == "nothing":
        found[:] = 0
    return found


def by_both(found, k, live=None, restarts=2, limit=PLENTY, seed=3):
    kernel = found @ found.swapaxes(1, 2)
    live = np.ones(found.shape[:2], bool) if live is None else live
    names = tuple(f"module {m}" for m in range(len(found)))
    wanted = cluster(kernel, live, k, names, seed, restarts)
    uniforms = np.stack([_uniforms(names, k, f"{seed}/{n}") for n in range(restarts)], axis=1)
    plan = layout(found.shape[1], k, uniforms.shape[-1], limit)
    return clusters(centred(kernel, live), live, uniforms, plan), wanted


@pytest.mark.parametrize(("units", "k"), [*SIZES, *(pytest.param(*s, marks=pytest.mark.slow) for s in LARGE)])
def test_labels_are_those_of_numpy(units, k):
    found, wanted = by_both(points(units), k)

    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("units", EVERY)
def test_so_they_are_for_every_size(units):
    found, wanted = by_both(points(units, kind="three groups"), min(units, 4), restarts=1)

    np.testing.assert_array_equal(found, wanted)
    assert len(set(wanted[0])) == min(units, 4)


def test_these_are_all_blocks_that_there_are():
    threads = {layout(units, min(units, 4), 3, PLENTY).threads for units in EVERY}

    assert {32, 256} <= threads
    assert threads <= set(range(32, 257, 32))


def test_two_workers_may_launch_it_at_a_time():
    found = {}
    crew = [
        threading.Thread(
            target=lambda n=n: found.update({n: by_both(points(n, kind="three groups"), 4)}), daemon=True
        )
        for n in (40, 70)
    ]

    for worker in crew:
        worker.start()
    for worker in crew:
        worker.join(60)

    assert found.keys() == {40, 70}, "they wait for each other"
    for labels, wanted in found.values():
        np.testing.assert_array_equal(labels, wanted)


def test_two_workers_ask_for_one_limit_of_shared_memory(monkeypatch):
    """The kernel is one object of CUDA: what one worker sets holds for the launch of the other."""
    asked = []
    monkeypatch.setattr(
        Function, "__setattr__", lambda self, *pair: asked.append(pair) or vars(self).update([pair])
    )

    with installed(monkeypatch):
        for units in (8, 96):
            found = points(units, kind="three groups")
            kernel, live = AWAY.asarray(found @ found.swapaxes(1, 2)), AWAY.asarray(np.ones((2, units), bool))
            cluster(kernel, live, 3, ("a", "b"), 0, 1)

    limits = [value for name, value in asked if name == "max_dynamic_shared_size_bytes"]
    assert limits == [SHARED, SHARED]


@pytest.mark.parametrize("kind", ["few directions", "alike", "all alike", "nothing"])
def test_units_that_coincide_get_the_same_labels_too(kind):
    found, wanted = by_both(points(34, kind=kind), 12)

    np.testing.assert_array_equal(found, wanted)


def test_units_that_are_not_live_get_none():
    live = np.ones((2, 33), bool)
    live[0, [0, 7, 32]] = live[1] = False
    data = points(33)
    data[~live] = 0

    found, wanted = by_both(data, 6, live)

    np.testing.assert_array_equal(found, wanted)
    assert (found[~live] == -1).all()


@pytest.mark.parametrize("limit", [NO_SHARED, 5000, PLENTY], ids=["global", "desk on chip", "all on chip"])
def test_it_does_not_matter_where_its_numbers_lie(limit):
    found, wanted = by_both(points(40), 9, limit=limit)

    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("whole", [False, True], ids=["one number", "all"])
@pytest.mark.parametrize("restarts", [1, 2])
def test_a_module_with_nan_has_the_labels_of_numpy(bad, whole, restarts):
    live = np.ones((2, 33), bool)
    live[0, 7] = False
    data = points(33)
    data[0, slice(None) if whole else 5] = bad

    with np.errstate(invalid="ignore"):
        found, wanted = by_both(data, 4, live, restarts=restarts)

    np.testing.assert_array_equal(found, wanted)
    assert set(found[0, live[0]]) == {0}
    assert found[0, 7] == -1


@pytest.mark.parametrize(("units", "k", "trials"), [(1, 1, 2), (7, 3, 3), (512, 64, 6), (2048, 64, 6)])
def test_both_languages_know_the_size_of_a_desk(units, k, trials):
    assert library().desk_bytes(units, k, trials) == desk_bytes(units, k, trials)


@pytest.mark.parametrize("limit", [64 << 10, 99 << 10, 163 << 10, 227 << 10])  # sm_75, 86, 80, 90
@pytest.mark.parametrize("units", [1, 31, 64, 112, 168, 512, 2048])
def test_a_block_never_asks_for_more_than_there_is(units, limit):
    plan = layout(units, min(units, 64), 6, limit)

    assert plan.shared <= limit
    assert plan.threads % 32 == 0
    assert 32 <= plan.threads <= 256


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"kernels": np.zeros((2, 4, 5))}, "kernels"),
        ({"kernels": np.zeros((2, 4, 4), np.float32)}, "kernels"),
        ({"kernels": np.zeros((2, 4, 8))[:, :, ::2]}, "kernels"),
        ({"live": np.zeros((2, 4))}, "live"),
        ({"live": np.zeros(4, bool)}, "live"),
        ({"uniforms": np.zeros((1, 2, 3, 3))}, "uniforms"),
        ({"uniforms": np.zeros((2, 2, 3))}, "uniforms"),
        ({"uniforms": np.zeros((2, 0, 3, 3))}, "uniforms"),
    ],
)
def test_arrays_that_do_not_fit_never_reach_the_kernel(wrong, named):
    right = {
        "kernels": np.zeros((2, 4, 4)),
        "live": np.zeros((2, 4), bool),
        "uniforms": np.zeros((2, 2, 3, 3)),
    }
    check(**right)

    with pytest.raises(ValueError, match=f"kmeans: {named}"):
        check(**{**right, **wrong})
