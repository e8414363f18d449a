"""A budget is met, cannot buy another unit, and loses as little energy as any sharing of ranks could."""

import itertools
import re

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import UsageError, speaking
from loramerge.request.budgets import Market, share
from tests.helpers.adapters import random_adapters, zero
from tests.helpers.files import content

WEIGHTS = "adapter_model.safetensors"
SHAPES = {"layers.0.q": (7, 9), "layers.0.v": (16, 12), "layers.1.q": (7, 9), "head": (5, 30)}
GROWTH = dict(zip(SHAPES, (1.0, 0.3, 4.0, 1.5), strict=True))
COSTS = {path: 4 * sum(shape) for path, shape in SHAPES.items()}


def sources(ranks=(2, 2)):
    """Adapters whose modules differ in strength, so that they should not have one rank."""
    made = random_adapters(0, ranks, SHAPES)
    return [lm.Adapter.of({t.path: a[t] * GROWTH[t.path] for t in a}, a.name) for a in made]


SOURCES = sources()


def squares(weights=(1.0, 1.0)):
    """Module path -> σ² of the weighted sum, by dense SVD."""
    total = {
        path: sum(w * s[lm.Target(path)].dense() for w, s in zip(weights, SOURCES, strict=True))
        for path in SHAPES
    }
    return {path: np.linalg.svd(matrix, compute_uv=False)[:4] ** 2 for path, matrix in total.items()}


def ranks(merge):
    return {target.path: slot.rank for target, slot in merge.adapter.slots.items()}


def lost(given, spectra):
    whole = sum(s.sum() for s in spectra.values())
    return sum(s[given[path] :].sum() for path, s in spectra.items()) / whole


def every_sharing():
    for each in itertools.product(range(1, 5), repeat=len(SHAPES)):
        yield dict(zip(SHAPES, each, strict=True))


@pytest.mark.parametrize("total", [4, 5, 7, 10, 15, 16, 40])
@pytest.mark.parametrize("method", ["linear", "svd", "average"])
def test_a_total_rank_loses_what_the_best_of_all_sharings_loses(method, total):
    merge = lm.combine(SOURCES, method, total_rank=total, profile="compact", dtype="float64")
    found = ranks(merge)
    best = min(lost(each, squares()) for each in every_sharing() if sum(each.values()) <= total)
    assert sum(found.values()) == min(total, 16)
    assert merge.report.energy_lost == pytest.approx(best, abs=1e-12)
    assert lost(found, squares()) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("seed", range(30))
def test_units_of_other_costs_are_shared_to_less_than_one_unit_of_the_best(seed):
    rng = np.random.default_rng(seed)
    gains = [np.sort(rng.exponential(size=rng.integers(0, 5)))[::-1] for _ in range(4)]
    market = Market(gains, rng.integers(1, 9, 4).astype(float), np.ones(4, int))
    limit = market.total(market.start) + rng.integers(0, 30)
    found = share(market, limit)
    choices = itertools.product(*(range(1, max(len(g), 1) + 1) for g in gains))
    best = min(market.lost(np.array(c)) for c in choices if market.total(np.array(c)) <= limit)
    assert market.total(found) <= limit
    left = [g[n] for g, n in zip(gains, found, strict=True) if n < len(g)]
    assert best <= market.lost(found) + 1e-12
    assert market.lost(found) - best <= max(left, default=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_at_its_own_cost_a_sharing_by_energy_for_cost_is_the_best(seed):
    rng = np.random.default_rng(seed)
    gains = [np.sort(rng.exponential(size=4))[::-1] for _ in range(4)]
    market = Market(gains, rng.integers(1, 9, 4).astype(float), np.ones(4, int))
    rates = np.sort(np.concatenate([g[1:] / c for g, c in zip(gains, market.costs, strict=True)]))
    bar = rates[rng.integers(len(rates))]
    bought = [1 + int((g[1:] / c >= bar).sum()) for g, c in zip(gains, market.costs, strict=True)]
    limit = market.total(np.array(bought))
    choices = map(np.array, itertools.product(range(1, 5), repeat=4))
    best = min(market.lost(c) for c in choices if market.total(c) <= limit)
    assert market.lost(share(market, limit)) == pytest.approx(best)


FORMS = [(p, o) for p in ("portable", "compact") for o in ("m", "m.safetensors")]


def weights_of(out):
    return out if out.suffix else out / WEIGHTS


@pytest.mark.parametrize("method", ["linear", "svd", "lego"])
@pytest.mark.parametrize(("profile", "out"), FORMS)
def test_a_size_is_met_on_the_disk_and_one_more_unit_would_be_too_much(profile, out, method, tmp_path):
    path = tmp_path / out
    least = lm.combine(SOURCES, method, rank=1, profile=profile, out=path).out
    base = weights_of(least).stat().st_size
    for extra in (0, 1, 150, 500, 10**6):
        size = base + extra + 400 * bool(path.suffix)
        merge = lm.combine(
            SOURCES, method, size=size, profile=profile, out=path, overwrite=True, dtype="float32"
        )
        assert weights_of(path).stat().st_size <= size
        for more in larger(ranks(merge), profile):
            rules = [lm.Rule(f"^{re.escape(p)}$", rank=rank) for p, rank in more.items()]
            other = tmp_path / f"other{path.suffix}"
            lm.combine(
                SOURCES, method, rules=rules, profile=profile, out=other, overwrite=True, dtype="float32"
            )
            slack = 2000 if path.suffix else 0  # its header tells of rules instead of ranks
            assert weights_of(other).stat().st_size + slack > size


def larger(found, profile):
    """The ranks with one more unit, where there is another."""
    if profile == "portable":
        most = max(found.values())
        return [] if most == 4 else [dict.fromkeys(found, most + 1)]
    return [{**found, path: rank + 1} for path, rank in found.items() if rank < 4]


def test_a_size_shares_by_energy_for_bytes(tmp_path):
    plain = lm.combine(SOURCES, "svd", rank=1, profile="compact", out=tmp_path / "one", dtype="float32")
    base = weights_of(plain.out).stat().st_size
    for extra in (100, 200, 400, 800):
        merge = lm.combine(SOURCES, "svd", size=base + extra, profile="compact", out=tmp_path / f"m{extra}",
                           dtype="float32")  # fmt: skip
        fits = [
            each
            for each in every_sharing()
            if sum(COSTS[path] * (rank - 1) for path, rank in each.items()) <= extra - 16
        ]
        best = min(lost(each, squares()) for each in fits)
        unit = max(s[ranks(merge)[path]] for path, s in squares().items() if ranks(merge)[path] < 4)
        assert merge.report.energy_lost <= best + unit / sum(s.sum() for s in squares().values())


@pytest.mark.parametrize("budget", [{"total_rank": 11}, {"size": 3000}], ids=str)
@pytest.mark.parametrize("profile", ["portable", "compact"])
def test_the_result_does_not_depend_on_threads_or_batches(budget, profile, tmp_path):
    plain = {"method": "svd", "profile": profile, "dtype": "float32", **budget}
    lm.combine(SOURCES, out=tmp_path / "m", threads=1, **plain)
    for threads, memory in [(3, 1 << 30), (2, 1)]:
        lm.combine(SOURCES, out=tmp_path / "n", threads=threads, memory=memory, overwrite=True, **plain)
        assert content(tmp_path / "m") == content(tmp_path / "n")


def test_the_portable_profile_has_the_largest_one_rank_that_fits():
    for total in (4, 7, 8, 11, 12, 40):
        merge = lm.combine(SOURCES, "svd", total_rank=total)
        assert set(ranks(merge).values()) == {min(total // 4, 4)}
        assert merge.method == lm.Svd(rank=min(total // 4, 4))


def test_lego_takes_the_ranks_so_decided():
    shared = lm.combine(SOURCES, "lego", total_rank=9, profile="compact")
    assert ranks(shared) == ranks(lm.combine(SOURCES, "svd", total_rank=9, profile="compact"))
    for path, rank in ranks(shared).items():
        alone = lm.combine(SOURCES, "lego", rank=rank, only=f"^{re.escape(path)}$")
        found, wanted = (m.adapter[lm.Target(path)].dense() for m in (shared, alone))
        assert np.array_equal(found, wanted)


def test_no_module_gets_units_without_energy():
    same = [SOURCES[0], SOURCES[0]]
    assert set(ranks(lm.combine(same, "linear", total_rank=100, profile="compact")).values()) == {2}
    nothing = lm.combine([zero(SOURCES[0])], "svd", total_rank=100, profile="compact")
    assert set(ranks(nothing).values()) == {1}


def test_a_rank_in_a_rule_stays_and_the_others_share_the_rest():
    rules = [lm.Rule("head", rank=3)]
    found = ranks(lm.combine(SOURCES, "svd", total_rank=9, profile="compact", rules=rules))
    assert found.pop("head") == 3
    assert sum(found.values()) == 6


def test_weights_by_module_are_seen_by_the_budget():
    rules = [lm.Rule("head", (100.0, 100.0))]
    assert ranks(lm.combine(SOURCES, "svd", total_rank=7, profile="compact", rules=rules))["head"] == 4


@pytest.mark.parametrize("budget", [{"total_rank": 9}, {"size": "9kB"}], ids=str)
@pytest.mark.parametrize(("profile", "out"), FORMS)
def test_a_replay_writes_the_same_bytes(budget, profile, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in SOURCES:
        lm.save(source, source.name)
    names = [source.name for source in SOURCES]
    lm.combine(names, "svd", out=out, profile=profile, **budget)
    again = f"again{out[1:]}"
    lm.replay(out, again)
    assert content(tmp_path / out) == content(tmp_path / again)


WRONG = {
    "two budgets": ("svd", {"total_rank": 9, "size": "1MB"}, "both set the size"),
    "a rank too": ("svd", {"total_rank": 9, "rank": 2}, "total_rank=9 and rank=2 both set the size"),
    "an energy too": ("svd", {"size": 9e6, "energy": 0.5}, "size=9000000 and energy=0.5 both set"),
    "no rank": (
        "cat",
        {"total_rank": 9},
        "for methods with a rank .linear, average, svd, lego and others., not for cat",
    ),
    "too small a rank": ("svd", {"total_rank": 3}, "too little: with rank 1 in every module it would be 4"),
    "too small a size": ("svd", {"size": 50}, "size=50 is too little.* or take a smaller dtype="),
    "no number": ("svd", {"total_rank": 0}, "whole number from 1 on"),
    "no size": ("svd", {"size": "much"}, "'much' is not a size such as 500MB"),
}


@pytest.mark.parametrize(("method", "options", "words"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_meant_is_a_usage_error(method, options, words):
    with pytest.raises(UsageError, match=words):
        lm.combine(SOURCES, method, **options)


TYPED = {  # -> as it is typed in the shell
    "a rank too": ({"size": "9MB", "rank": 2}, "--size 9MB and --rank 2 both"),
    "an energy too": ({"total_rank": 9, "energy": 0.5}, "--total-rank 9 and --energy 0.5 both"),
    "a share too": ({"size": "9MB", "energy_per_module": 0.5}, "--size 9MB and --energy-per-module 0.5 both"),
    "an energy and a share": (
        {"energy": 0.5, "energy_per_module": 0.9},
        "--energy-per-module 0.9 and --energy 0.5 both",
    ),
    "no rank": ({"method": "cat", "size": "9MB"}, "--size 9MB is for methods with a rank"),
    "too small": ({"size": "50B"}, "--size 50B is too little: .* or take a smaller --dtype"),
}


@pytest.mark.parametrize(("options", "words"), TYPED.values(), ids=TYPED)
def test_a_budget_is_said_as_the_user_wrote_it(options, words):
    with speaking("shell"), pytest.raises(UsageError, match=words):
        lm.combine(SOURCES, **options)


def test_a_plan_for_a_folder_is_not_written_as_a_larger_file(tmp_path):
    size = 2200
    merge = lm.combine(SOURCES, "svd", size=size, dtype="float32", out=tmp_path / "m")
    with pytest.raises(UsageError, match="planned as a folder"):
        merge.save(tmp_path / "m.safetensors")
