"""Dense tiles, exact limits and the refit: every number against the whole matrix."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramerge import (
    Adapter,
    Breadcrumbs,
    Dare,
    Della,
    Effort,
    LowRank,
    Magnitude,
    Sce,
    Target,
    Ties,
    combine,
    plan,
)
from loramerge import open as open_adapters
from loramerge.algorithms.entries import tiled
from loramerge.algorithms.entries.search import Search
from loramerge.algorithms.entries.thresholds import Bracket, guessed, largest, look, narrowed
from loramerge.algorithms.entries.tiles import dense as tiles_of
from loramerge.algorithms.families.refit import refit, squares
from loramerge.algorithms.families.sized import common_rank
from loramerge.arrays.workers import workers
from loramerge.errors import UsageError
from tests.helpers.adapters import cast, dense, distance, merged, random_adapters, truncated, units_of


@pytest.fixture(autouse=True)
def one_thread():
    """As in a worker: more threads wait for each other."""
    with workers(1):
        yield


few = settings(max_examples=60, deadline=None, derandomize=True)
SHAPE = {"q": (150, 1100)}  # more than one tile both ways


def grams_of(sources, weights=None):
    grams = units_of(sources)[0].grams()
    return replace(grams, weights=np.ones(len(sources)) if weights is None else np.array(weights))


# --- the k-th largest


def value_sets():
    spread = st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=60)
    huge = st.lists(st.floats(0, 1e300), min_size=1, max_size=60)
    tied = st.lists(st.sampled_from([0.0, 1.0, 1.0 + 2**-23, 2.0]), min_size=1, max_size=60)
    return st.one_of(spread, tied, huge)


@few
@given(value_sets(), st.data(), st.sampled_from([np.float32, np.float64]))
def test_the_kth_largest_is_exact_whatever_the_sample(values, data, kind):
    array = np.minimum(values, np.finfo(kind).max).astype(kind)
    rank = data.draw(st.integers(1, len(values)))
    sample = np.array(data.draw(st.lists(st.sampled_from(array.tolist()), min_size=1, max_size=9)), kind)
    found = largest([rank], len(array), sample, lambda: [array[:7], array[7:]])
    assert found == [np.sort(array)[-rank]]


@few
@given(value_sets(), st.data(), st.sampled_from([np.float32, np.float64]))
def test_counting_alone_finds_it_too(values, data, kind):
    """As over a whole adapter, where nothing can be collected."""
    array = np.minimum(values, np.finfo(kind).max).astype(kind)
    rank = data.draw(st.integers(1, len(values)))
    bracket, looks = Bracket(rank), 0
    while isinstance(bracket, Bracket):
        (seen,) = look([bracket], [array], collect=0)
        bracket, looks = narrowed(bracket, seen), looks + 1
    assert bracket == np.sort(array)[-rank]
    assert looks <= 8


def test_a_sample_saves_passes():
    values = np.random.default_rng(0).standard_normal(1 << 20) ** 2
    passes = []

    def pieces():
        passes.append(1)
        yield values

    assert largest([1000, 200000], len(values), values[: 1 << 14], pieces) == [
        np.sort(values)[-1000],
        np.sort(values)[-200000],
    ]
    assert len(passes) == 1
    assert guessed(1, 10, np.array([3.0]), np.array([10.0])).low <= 3.0


# --- tiles


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_tiles_are_the_matrix(kind):
    sources = [cast(s, kind) for s in random_adapters(3, (3, 5), SHAPE, scale=0.3)]
    entries = tiles_of(grams_of(sources), 0)
    assert entries.dtype == kind
    for t, source in enumerate(sources):
        whole = np.empty(entries.shape)
        for tile in entries.tiles():
            whole[tile] = entries.values(tile)[t, 0]
        wanted = dense(source)["q"]
        assert np.abs(whole - wanted).max() < 4 * np.finfo(kind).eps * np.abs(wanted).max() * 5


def test_sources_that_change_nothing_are_not_there():
    a, b, c = random_adapters(3, (3, 5, 2), SHAPE)
    nothing = Adapter.of({"q": LowRank(np.zeros((150, 2)), np.ones((2, 1100)))}, "untrained")
    assert tiles_of(grams_of([a, nothing, b, c], [1, 1, 0, 2]), 0).present == (0, 3)
    assert tiles_of(grams_of([a, b], [0, 0]), 0) is None


def test_numbers_that_float32_does_not_hold_well_are_float64():
    small = Adapter.of({"q": LowRank(np.full((4, 1), 2.0**-60), np.full((1, 3), 2.0**-60))})
    assert tiles_of(grams_of([small]), 0).dtype == np.float64
    found = merged([small], "ties", density=1.0)["q"]
    np.testing.assert_allclose(found, dense(small)["q"], rtol=1e-12)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("rule", [Ties(density=0.2), Breadcrumbs(density=0.3, gamma=0.02)], ids=repr)
def test_exactly_as_many_entries_are_kept_as_the_density_says(rule, kind):
    sources = [cast(s, kind) for s in random_adapters(3, (3, 5), SHAPE)]
    entries = tiles_of(grams_of(sources), 0)
    limits = tiled.limits(rule, entries)
    for t in range(2):
        sizes = [np.abs(entries.values(tile, t)) for tile in entries.tiles()]
        kept = sum(int(((s >= limits.low[t, 0]) & (s < limits.high[t, 0])).sum()) for s in sizes)
        assert kept == int(rule.density * entries.count)


def test_entries_of_one_size_are_kept_together():
    """Every entry is 1 or -1: no half of them is larger."""
    source = Adapter.of({"q": LowRank(np.array([[1.0], [-1.0]]), np.ones((1, 6)))})
    assert distance(merged([source], "ties", density=0.25), dense(source)) < 1e-12


def flips(method, sources):
    """Entries that are kept in float32 or in float64 only: how far from its limit each is, as a share of
    that."""
    single = tiles_of(grams_of([cast(s, np.float32) for s in sources]), 0)
    rounded = [cast(cast(s, np.float32), np.float64) for s in sources]
    nudge = LowRank(np.full((150, 1), 1e-9), np.full((1, 1100), 1 / 3))  # no float32 number: all in float64
    double = tiles_of(grams_of([*rounded, Adapter.of({"q": nudge}, "nudge")]), 0)
    low, high = (tiled.limits(method, each).low for each in (single, double))
    away = []
    for tile in single.tiles():
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
    shape = 2500, 3000
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
        for t in range(6)
    ]
    tracemalloc.start()
    combine(sources, method, threads=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * shape[0] * shape[1] + (64 << 20)


def test_no_more_workers_than_there_is_memory_for():
    todo = plan(random_adapters(1, (3, 4), {"q": (4000, 4000)}), "ties")
    each = 4 * 4000 * 4000 + (64 << 20)
    found = [Effort(8, n * each).holding(todo.work.held(todo.method)).workers for n in (0.5, 1, 2.9, 20)]
    assert found == [1, 1, 2, 8]
    core = replace(todo.method, space="core")
    assert Effort(8, each).holding(todo.work.held(core)).workers == 8


# --- limits over the whole adapter


def everywhere():
    shapes = {"a": (150, 1100), "b": (70, 40), "c": (9, 5)}
    sources = random_adapters(6, (3, 4), shapes)
    weak = {t.path: s * (0.1 if t.path == "a" else 1.0) for t, s in sources[0].items()}
    return [Adapter.of(weak, "source0"), sources[1]]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_limit_over_the_adapter_counts_all_modules(kind):
    sources = [cast(s, kind) for s in everywhere()]
    merge = combine(sources, Magnitude(density=0.3, scope="adapter", rank=9), weights=[1, 0], threads=1)
    wide = cast(sources[0], np.float64)
    sizes = np.concatenate([np.abs(m).ravel() for m in dense(wide).values()])
    limit = np.sort(sizes)[-int(0.3 * len(sizes))]
    (low,), (high,) = merge.method.search.limits([0])
    assert low == pytest.approx(limit, rel=1e-6)
    assert high == np.inf
    for path, matrix in dense(wide).items():
        kept = matrix * (np.abs(matrix) >= limit * (1 - 1e-6))
        found = dense(merge.adapter)[path]
        assert distance({path: found}, {path: truncated(kept, 9)}) < 1e-5


def test_the_limits_are_found_in_few_looks():
    sources = everywhere()
    grams = [replace(u.grams(), weights=np.ones(2)) for u in units_of(sources)]
    method, looks = Magnitude(density=0.3, scope="adapter"), 0
    while method.observes:
        method, looks = method.decide([method.observe(g) for g in grams], 4), looks + 1
    assert looks <= 7
    assert method.search.done
    assert not Search().done


@pytest.mark.parametrize("space", ["dense", "core"])
@pytest.mark.parametrize(
    "method", [Ties(scope="adapter"), Breadcrumbs(scope="adapter", gamma=0.05)], ids=repr
)
def test_batches_and_threads_change_no_limit(method, space):
    sources = random_adapters(6, (3, 4), {f"layers.{i}.q": (20 + i, 30) for i in range(20)})
    method = replace(method, space=space)
    marks = {
        (m := combine(sources, method, threads=t, memory=b)).method.search
        for t, b in [(1, 1 << 30), (3, 1 << 16)]
    }
    assert len(marks) == 1
    assert m.report.modules


# --- the refit


def hard(kind):
    rng = np.random.default_rng(0)
    shape = 220, 260
    low = rng.standard_normal((shape[0], 12)) @ rng.standard_normal((12, shape[1]))
    return {
        "a trimmed sum": np.where(np.abs(low) > 4, low, 0),
        "noise": rng.standard_normal(shape),
        "low rank and noise": low + 0.5 * rng.standard_normal(shape),
        "equal values": np.linalg.qr(rng.standard_normal((260, 220)))[0].T,
        "low rank": low,
        "one entry": np.eye(*shape, 7) * (np.arange(260) == 12),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["a trimmed sum", "noise", "low rank and noise", "equal values", "low rank", "one entry"]
)
@pytest.mark.parametrize("rank", [1, 16, 64, 220])
@pytest.mark.parametrize("start", ["span", "nothing", "wrong"])
def test_a_refit_loses_what_the_best_one_loses(kind, rank, start):
    matrix = hard(kind)
    begun = {"span": matrix[:12], "nothing": matrix[:0], "wrong": np.eye(260)[250:]}[start]
    best = np.linalg.svd(matrix, compute_uv=False)
    least = float((best[rank:] ** 2).sum())
    fit = refit(matrix, rank, begun)
    assert fit.up.shape == (220, rank)
    assert fit.whole == pytest.approx((matrix**2).sum())
    lost = float(((matrix - fit.up @ fit.down) ** 2).sum())
    assert lost <= least + 1e-6 * fit.whole
    assert fit.cut == pytest.approx(lost, abs=1e-9 * fit.whole)
    np.testing.assert_allclose(squares(matrix), best**2, atol=1e-10 * fit.whole)


@pytest.mark.parametrize("kind", ["a trimmed sum", "noise", "low rank and noise", "equal values", "low rank"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_a_share_of_the_spectrum_needs_as_many_units_as_the_whole_says(kind, share):
    matrix = hard(kind)
    every, some = squares(matrix), squares(matrix, share, matrix[:12])
    assert some.sum() == pytest.approx(every.sum())
    assert common_rank([some[None]], share - 1e-5) <= common_rank([every[None]], share)
    assert common_rank([some[None]], share) >= common_rank([every[None]], share)


def test_a_refit_in_float32_is_as_good_to_its_digits():
    matrix = hard("a trimmed sum")
    least = float((np.linalg.svd(matrix, compute_uv=False)[16:] ** 2).sum())
    fit = refit(matrix.astype(np.float32), 16, matrix[:12].astype(np.float32))
    lost = float(((matrix - fit.up @ fit.down) ** 2).sum())
    assert lost <= least + 1e-6 * fit.whole
    assert fit.cut == pytest.approx(lost, abs=1e-6 * fit.whole)


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
