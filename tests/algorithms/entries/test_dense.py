"""Rules on dense ΔW: exact limits within a module, and merges by tiles against the whole matrix."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from loramerge import (
    Adapter,
    Breadcrumbs,
    Dare,
    Della,
    Effort,
    LowRank,
    Sce,
    Target,
    Ties,
    combine,
    plan,
)
from loramerge import open as open_adapters
from loramerge.algorithms.entries.dense import limits
from loramerge.algorithms.entries.tiles import tiles
from loramerge.arrays.workers import workers
from loramerge.errors import UsageError
from tests.algorithms.entries.test_tiles import SHAPE, grams_of
from tests.helpers.adapters import cast, dense, distance, merged, random_adapters, truncated


@pytest.fixture(autouse=True)
def one_thread():
    """As in a worker: more threads wait for each other."""
    with workers(1):
        yield


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("method", [Ties(density=0.2), Breadcrumbs(density=0.3, gamma=0.02)], ids=repr)
def test_exactly_as_many_entries_are_kept_as_the_density_says(method, kind):
    sources = [cast(s, kind) for s in random_adapters(3, (3, 5), SHAPE)]
    entries = tiles(grams_of(sources), 0)
    found = limits(method.rule, entries)
    for t in range(2):
        sizes = [np.abs(entries.values(tile, t)) for tile in entries.places()]
        kept = sum(int(((s >= found.low[t, 0]) & (s < found.high[t, 0])).sum()) for s in sizes)
        assert kept == int(method.density * entries.count)


def test_entries_of_one_size_are_kept_together():
    """Every entry is 1 or -1: no half of them is larger."""
    source = Adapter.of({"q": LowRank(np.array([[1.0], [-1.0]]), np.ones((1, 6)))})
    assert distance(merged([source], "ties", density=0.25), dense(source)) < 1e-12


def flips(method, sources):
    """Entries that are kept in float32 or in float64 only: how far from its limit each is, as a share of
    that."""
    single = tiles(grams_of([cast(s, np.float32) for s in sources]), 0)
    rounded = [cast(cast(s, np.float32), np.float64) for s in sources]
    nudge = LowRank(np.full((150, 1), 1e-9), np.full((1, 1100), 1 / 3))  # no float32 number: all in float64
    double = tiles(grams_of([*rounded, Adapter.of({"q": nudge}, "nudge")]), 0)
    low, high = (limits(method.rule, each).low for each in (single, double))
    away = []
    for tile in single.places():
        for t in range(2):
            a, b = np.abs(single.values(tile, t)), np.abs(double.values(tile, t))
            differ = (a >= low[t, 0]) != (b >= high[t, 0])
            away += (np.abs(b[differ] - high[t, 0]) / high[t, 0]).tolist()
    return single.dtype, double.dtype, away


def test_float32_flips_only_entries_at_their_limit():
    found = [flips(Ties(density=d), random_adapters(s, (3, 5), SHAPE)) for s in range(4) for d in (0.1, 0.5)]
    assert {(a.name, b.name) for a, b, _ in found} == {("float32", "float64")}
    away = [each for _, _, some in found for each in some]
    assert len(away) <= 8 * 2 * 4, "flips"  # of 2.6 million entries
    assert max(away, default=0.0) < 1e-6


def test_votes_of_float32_differ_only_where_they_cancel():
    sources = random_adapters(5, (3, 5), SHAPE)
    whole = Ties(density=1.0, rank=150)
    exact = merged([cast(cast(s, np.float32), np.float64) for s in sources], whole)["q"]
    single = merged([cast(s, np.float32) for s in sources], whole)["q"]
    sums = np.abs(sum(dense(cast(s, np.float32))["q"].astype(float) for s in sources))
    scale = np.abs(exact).max()
    apart = np.abs(exact - single) > 1e-4 * scale
    assert (sums[apart] < 1e-6 * scale).all()
    assert apart.mean() < 1e-4


@pytest.mark.parametrize("method", [Ties(), Dare(), Sce(density=0.3), Della()], ids=repr)
def test_large_modules_need_one_matrix_and_little_more(method):
    """At most the merged matrix in float32 and 64 MB, however many sources there are."""
    rng = np.random.default_rng(0)
    shape = 1600, 2000  # 13 MB: eight of them would be too many
    sources = [
        Adapter.of(
            {
                "q": LowRank(
                    rng.standard_normal((shape[0], 4)).astype("f4"),
                    rng.standard_normal((4, shape[1])).astype("f4"),
                )
            },
            f"s{t}",
        )
        for t in range(8)
    ]
    tracemalloc.start()
    combine(sources, method, threads=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * shape[0] * shape[1] + (64 << 20)


def test_no_more_workers_than_there_is_memory_for():
    todo = plan(random_adapters(1, (3, 4), {"q": (4000, 4000)}), "ties")
    each = todo.work.held(todo.method)
    found = [Effort(8, n * each).holding(each).workers for n in (0.5, 1, 2.9, 20)]
    assert found == [1, 1, 2, 8]
    core = replace(todo.method, space="core")
    assert Effort(8, each).holding(todo.work.held(core)).workers == 8


# --- in the workbench


def test_the_report_tells_what_the_rank_cost():
    sources = random_adapters(1, (3, 4), {"q": (40, 30)})
    merge = combine(sources, Ties(rank=4), dtype="float64")
    whole = merged(sources, Ties(rank=30))["q"]
    (module,) = merge.report.modules
    lost = np.linalg.norm(whole - dense(merge.adapter)["q"]) ** 2 / np.linalg.norm(whole) ** 2
    assert module.cut / module.whole == pytest.approx(lost, abs=1e-9)
    best = np.linalg.norm(whole - truncated(whole, 4)) ** 2 / np.linalg.norm(whole) ** 2
    assert lost == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("scope", ["module", "adapter"])
def test_energy_is_of_the_dense_merge(scope):
    sources = random_adapters(1, (3, 4), {"q": (40, 30), "v": (12, 30)})
    merge = combine(sources, Ties(scope=scope, energy=0.9), dtype="float64")
    whole = merged(sources, Ties(scope=scope, rank=30))
    shares = [np.cumsum(np.linalg.svd(m, compute_uv=False) ** 2) / (m**2).sum() for m in whole.values()]
    assert merge.method.rank == max(int((share < 0.9 - 1e-12).sum()) + 1 for share in shares)


@pytest.mark.parametrize("profile", ["portable", "compact"])
@pytest.mark.parametrize("scope", ["module", "adapter"])
def test_dense_merges_fit_a_budget(profile, scope):
    sources = random_adapters(1, (3, 4), {"q": (40, 30), "v": (12, 30)})
    merge = combine(sources, Ties(scope=scope), total_rank=14, profile=profile, dtype="float64")
    widths = [merge.adapter[Target(path)].rank for path in "qv"]
    assert sum(widths) == 14
    assert (widths == [7, 7]) == (profile == "portable")


def test_a_budget_and_a_rank_are_one_too_many():
    with pytest.raises(UsageError, match="both set the size"):
        combine(random_adapters(1, (3, 4)), Ties(rank=3, scope="adapter"), total_rank=14)


def test_a_rank_may_exceed_that_of_all_sources_together():
    sources = random_adapters(1, (1, 1), {"q": (40, 30), "v": (3, 30)})
    merge = combine(sources, Ties(rank=20), dtype="float64")
    assert merge.adapter[Target("q")].rank == 20
    assert merge.report.modules[0].cut < combine(sources, Ties(rank=2)).report.modules[0].cut


@pytest.mark.parametrize(
    "method", [Ties(), Ties(scope="adapter", energy=0.8), Dare(space="core"), Sce()], ids=repr
)
def test_opened_adapters_merge_alike(method):
    sources = random_adapters(1, (3, 4))
    opened = open_adapters(sources)
    for weights in ([1.0, 0.5], [0.3, -1.0]):
        once = combine(sources, method, weights=weights, dtype="float64").adapter
        assert distance(dense(opened.combine(method, weights=weights).adapter), dense(once)) < 1e-12
