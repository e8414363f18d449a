"""What a method declares in its traits must hold, and what it declares not to hold must fail.

Every method is here in every run; more of their variants with `-m slow`.

Every law runs over every row of `ROWS` and over the same few merges. A law that a row does not declare is
turned into its counter-test, so a wrong declaration fails either way.
"""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramerge import (
    METHODS,
    Adapter,
    Average,
    Breadcrumbs,
    Cat,
    Core,
    Ctm,
    Dare,
    DareTies,
    Della,
    Emr,
    Fair,
    FedAvg,
    Ffa,
    IsoC,
    IsoCTS,
    Karcher,
    Knots,
    Lego,
    Linear,
    LowRank,
    Magnitude,
    MergeVla,
    ModelStock,
    Pico,
    Sce,
    Sg,
    Slerp,
    Svd,
    Ties,
    Tsv,
    Wudi,
    combine,
    from_state_dict,
)
from loramerge.algorithms.sized import Sized
from loramerge.errors import IncompatibleError, UsageError
from tests.adapters import (
    cast,
    changed,
    dense,
    distance,
    merged,
    random_adapters,
    truncated,
    update,
    weighted,
    zero,
)

ROWS = {
    "linear": Linear(),
    "linear, rank 3": Linear(rank=3),
    "average": Average(),
    "average, rank 3": Average(rank=3),
    "average, 90 %": Average(energy=0.9),
    "cat": Cat(),
    "svd": Svd(),
    "svd, rank 3": Svd(rank=3),
    "svd, 90 %": Svd(energy=0.9),
    "lego": Lego(),
    "lego, rank 1": Lego(rank=1),
    "lego, rank 3": Lego(rank=3),
    "lego, rank 5": Lego(rank=5),
    "lego, 90 %": Lego(energy=0.9),
    "lego, directions": Lego(rank=3, features="normalised"),
    "lego, restarts": Lego(rank=3, restarts=4, seed=7),
    "lego, directions, restarts": Lego(rank=3, features="normalised", restarts=4),
    "ctm": Lego(variant="ctm", rank=3),
    "ctm, directions": Lego(variant="ctm", rank=3, features="normalised"),
    "ctm, l2": Lego(variant="ctm", rank=3, rescale="l2"),
    "ctm, not stretched": Lego(variant="ctm", rank=3, rescale="none"),
    "ctm, √(r/k)": Lego(variant="ctm", rank=3, gain="sqrt-r/k"),
    "ctm, no gain": Lego(variant="ctm", rank=3, gain="none", restarts=3),
    "nsc": Lego(variant="nsc", rank=3),
    "nsc, raw": Lego(variant="nsc", rank=3, features="raw"),
    "nsc, l2": Lego(variant="nsc", rank=3, rescale="l2"),
    "nsc, not stretched": Lego(variant="nsc", rank=3, rescale="none"),
    "nsc, √(N/k)": Lego(variant="nsc", rank=3, gain="sqrt-N/k"),
    "nsc, no gain": Lego(variant="nsc", rank=3, gain="none"),
    "mergevla": MergeVla(),
    "mergevla, rank 3": MergeVla(rank=3),
    "mergevla, 90 %": MergeVla(energy=0.9),
    "mergevla, ties": MergeVla(base="ties"),
    "mergevla, emr": MergeVla(base="emr", rank=3),
    "mergevla, consensus": MergeVla(consensus=1),
    "iso_c": IsoC(),
    "iso_c, rank 3": IsoC(rank=3),
    "iso_c, 90 %": IsoC(energy=0.9),
    "knots": Knots(density=0.5),
    "knots, all": Knots(density=1.0),
    "knots, rank 3": Knots(rank=3),
    "knots, 90 %": Knots(energy=0.9),
    "knots, dare_ties": Knots(rule="dare_ties", density=0.5),
    "knots, linear": Knots(rule="linear"),
    "knots, linear, rank 3": Knots(rule="linear", rank=3),
    "slerp": Slerp(),
    "slerp, rank 3": Slerp(rank=3),
    "slerp, whole adapters": Slerp(scope="adapter"),
    "slerp, 90 %": Slerp(energy=0.9),
    "karcher": Karcher(),
    "karcher, rank 3": Karcher(rank=3),
    "karcher, whole adapters, 90 %": Karcher(scope="adapter", energy=0.9),
    "karcher, 90 %": Karcher(energy=0.9),
    "model_stock": ModelStock(),
    "model_stock, rank 3": ModelStock(rank=3),
    "model_stock, whole adapters": ModelStock(scope="adapter"),
    "model_stock, 90 %": ModelStock(energy=0.9),
    "ffa": Ffa(),
    "fair": Fair(),
    "fair, λ = 0": Fair(ridge=0.0),
    "fair, λ = 1": Fair(ridge=1.0),
    "fedavg": FedAvg(),
    "iso_cts": IsoCTS(common=0.5),
    "iso_cts, rank 3": IsoCTS(common=0.3, rank=3),
    "iso_cts, 90 %": IsoCTS(common=0.5, energy=0.9),
    "tsv": Tsv(),
    "tsv, two of each": Tsv(per_source=2),
    "tsv, rank 3": Tsv(rank=3),
    "tsv, 90 %": Tsv(energy=0.9),
    "pico": Pico(),
    "pico, rank 3": Pico(rank=3),
    "pico, 90 %": Pico(energy=0.9),
    "pico, ties": Pico(rule="ties", density=0.2),
    "pico, ties, all": Pico(rule="ties", density=1.0),
    "pico, dare": Pico(rule="dare", rank=3),
    "core, sum": Core(rule="sum"),
    "compress, then sum": Ctm(rule="sum", rank=3),
    "wudi": Wudi(),
    "wudi, hard": Wudi(ridge=1e-9),
    "wudi, rank 3": Wudi(rank=3),
    "wudi, 90 %": Wudi(energy=0.9),
    "core": Core(),
    "core, all": Core(density=1.0),
    "core, rank 3": Core(rank=3),
    "core, 90 %": Core(energy=0.9),
    "core, dare_ties": Core(rule="dare_ties", seed=1),
    "core, magnitude, all": Core(rule="magnitude", density=1.0),
    "core, sce": Core(rule="sce"),
    "compress, then merge": Ctm(),
    "compress, then merge, all": Ctm(density=1.0),
    "compress, then merge, rank 3": Ctm(rank=3, beta=1.0),
    "compress, then merge, 90 %": Ctm(energy=0.9, beta=0.0),
    "compress, then merge, dare_ties": Ctm(rule="dare_ties", rank=3),
    "compress, then merge, emr": Ctm(rule="emr", rank=2),
    "ties": Ties(density=0.5),
    "ties, all": Ties(density=1.0),
    "ties, rank 3": Ties(rank=3),
    "ties, 90 %": Ties(energy=0.9),
    "ties, raw votes": Ties(density=0.5, election="raw", divisor="count"),
    "ties, one vote each": Ties(density=0.5, election="count"),
    "ties, summed": Ties(density=0.5, divisor="none"),
    "ties, over the adapter": Ties(density=0.3, scope="adapter"),
    "ties, over the adapter, 90 %": Ties(density=0.3, scope="adapter", energy=0.9),
    "ties, core": Ties(density=0.5, space="core"),
    "ties, core, all": Ties(density=1.0, space="core"),
    "ties, core, rank 3": Ties(density=0.5, space="core", rank=3),
    "ties, core, over the adapter": Ties(density=0.3, space="core", scope="adapter"),
    "dare": Dare(),
    "dare, all": Dare(density=1.0),
    "dare, l1": Dare(rescale="l1", seed=1),
    "dare, not rescaled": Dare(rescale="none"),
    "dare, core": Dare(space="core"),
    "dare, core, all": Dare(density=1.0, space="core"),
    "dare_ties": DareTies(),
    "dare_ties, all": DareTies(density=1.0),
    "dare_ties, core": DareTies(space="core"),
    "magnitude": Magnitude(density=0.5),
    "magnitude, all": Magnitude(density=1.0),
    "magnitude, over the adapter": Magnitude(density=0.5, scope="adapter"),
    "magnitude, core": Magnitude(density=0.5, space="core"),
    "magnitude, core, all": Magnitude(density=1.0, space="core"),
    "della": Della(),
    "della, all": Della(density=1.0),
    "della, l1, no election": Della(rescale="l1", election="none", divisor="none"),
    "della, core": Della(space="core"),
    "breadcrumbs": Breadcrumbs(density=0.5, gamma=0.1),
    "breadcrumbs, all": Breadcrumbs(density=1.0),
    "breadcrumbs, elected": Breadcrumbs(density=0.5, gamma=0.1, election="weighted", divisor="weight"),
    "breadcrumbs, over the adapter": Breadcrumbs(density=0.5, gamma=0.1, scope="adapter"),
    "breadcrumbs, core": Breadcrumbs(density=0.5, gamma=0.1, space="core"),
    "sce": Sce(),
    "sce, half": Sce(density=0.5),
    "sce, over the adapter": Sce(density=0.5, scope="adapter"),
    "sce, core": Sce(density=0.5, space="core"),
    "emr": Emr(),
    "emr, core": Emr(space="core"),
    "sg": Sg(),
    "sg, warm": Sg(temperature=1.0),
    "sg, warm, rank 3": Sg(temperature=1.0, rank=3),
    "sg, warm, 90 %": Sg(temperature=1.0, energy=0.9),
    "sg, the nearest": Sg(temperature=0),
    "sg, all alike": Sg(temperature=np.inf, top_k=2),
}
TRUNCATING = {name: ROWS[name] for name in ("linear, rank 3", "average, rank 3", "svd, rank 3")}


def doubled(u):
    """The same units twice over, at half the strength: more units than rank."""
    return 0.5 * (u + u)


MERGES = {  # (adapters, weights)
    "three of different rank": (random_adapters(1, (3, 2, 4)), [1.0, -0.5, 2.0]),
    "two of one rank": (random_adapters(2, (3, 3), scale=0.25), [0.5, 0.5]),
    "more units than the module has columns": (random_adapters(3, (4, 5, 3), {"q": (5, 6)}), [1.0, 1.0, 1.0]),
    "a source of more units than that": (random_adapters(7, (8, 2), {"q": (5, 6)}), [1.0, 0.8]),
    "rank 1": (random_adapters(4, (1, 1, 1, 1)), [0.3, 1.0, -2.0, 1.0]),
    "one module missing in one": (
        [*random_adapters(5, (3, 4)), *random_adapters(6, (2,), {"layers.0.q": (7, 9)})],
        [1.0, 2.0, 0.7],
    ),
    "one source holds units twice": (
        [*random_adapters(9, (3,)), changed(random_adapters(10, (2,))[0], doubled)],
        [1.0, -0.6],
    ),
}

TIGHT, LOOSE = 1e-8, 1e-2
QUICK = {  # in every run: all methods, and variants that take another way; the others with -m slow
    *(name for name in ROWS if "," not in name),
    "linear, rank 3",
    "svd, 90 %",
    "lego, rank 3",
    "nsc, √(N/k)",
    "iso_cts, rank 3",
    "tsv, rank 3",
    "pico, ties",
    "core, rank 3",
    "compress, then merge",
    "compress, then merge, dare_ties",
    "knots, dare_ties",
    "slerp, whole adapters",
    "fair, λ = 0",
    "ties, core",
    "ties, over the adapter",
    "dare, core",
    "mergevla, ties",
    "sg, warm",
}
every_method = pytest.mark.parametrize(
    "method",
    [pytest.param(m, id=n, marks=() if n in QUICK else pytest.mark.slow) for n, m in ROWS.items()],
)
every_merge = pytest.mark.parametrize(("sources", "weights"), MERGES.values(), ids=MERGES)


def alike(sources, shared):
    """The adapters at one rank in every module, and with one A there if it is to be shared."""
    had = {target: [s[target] for s in sources if target in s] for source in sources for target in source}

    def cut(target, u):
        rank = min(each.rank for each in had[target])
        return LowRank(u.up[:, :rank], (had[target][0] if shared else u).down[:rank], u.scale)

    return [Adapter.of({t.path: cut(t, s[t]) for t in s}, s.name) for s in sources]


def taken(method, sources, weights):
    """As many of the sources as the method takes, of ranks that it takes, at weights that it knows."""
    traits = method.traits
    sources, weights = sources[: traits.most], weights[: traits.most]
    sources = sources if traits.units == "any" else alike(sources, traits.units == "shared")
    return sources, weights if traits.negative else [abs(weight) for weight in weights]


def merges_for(method):
    return [taken(method, *merge) for merge in MERGES.values()]


def claim(declared, differences):
    """The law if it is declared, its counter-test if not."""
    worst = max(differences)
    assert worst < TIGHT if declared else worst > LOOSE, (
        f"declared {declared}, but the difference is {worst:.1e}"
    )


def with_room(method, rank):
    """The same method with space for `rank` units."""
    return replace(method, rank=rank, energy=None) if isinstance(method, Sized) else method


def each(sources, change):
    return [changed(source, change) for source in sources]


def each_merge(method, change):
    """How far every merge of `MERGES` moves if its sources are changed so."""
    return [distance(merged(each(s, change), method, w), merged(s, method, w)) for s, w in merges_for(method)]


# --- the same update in other words ---------------------------------------------------------------


def mixed(cond):
    """(up X, X⁻¹ down) with a random X of this condition number."""

    def change(u):
        rng = np.random.default_rng(u.rank)
        left, right = (np.linalg.qr(rng.standard_normal((u.rank, u.rank)))[0] for _ in range(2))
        x = left * np.geomspace(1, 1 / cond, u.rank) @ right
        return LowRank(u.up @ x, np.linalg.solve(x, u.down), u.scale)

    return change


def flipped(u):
    signs = (-1.0) ** np.arange(1, u.rank + 1)
    return LowRank(u.up * signs, signs[:, None] * u.down, u.scale)


def split(factor):
    return lambda u: LowRank(u.up / factor, u.down * factor, u.scale)


GAUGES = {
    "any basis": mixed(30),
    "any basis, ill conditioned": mixed(1e3),
    "signs": flipped,
    "A times 7": split(7.0),
    "A over 7": split(1 / 7),
    "A times 1e6": split(1e6),
    "A over 1e6": split(1e-6),
}


@every_method
@pytest.mark.parametrize("gauge", GAUGES.values(), ids=GAUGES)
def test_only_the_updates_matter_if_the_method_says_so(method, gauge):
    def apart(sources, weights):
        other, same = [changed(sources[0], gauge), *sources[1:]], merged(sources, method, weights)
        try:
            return distance(merged(other, method, weights), same)
        except IncompatibleError:  # an A that is shared no longer
            return np.inf

    claim(method.traits.gauge == "invariant", [apart(*merge) for merge in merges_for(method)])


@every_method
def test_the_order_of_the_units_in_an_adapter_is_nothing(method):
    claim(True, each_merge(method, lambda u: LowRank(u.up[:, ::-1], u.down[::-1], u.scale)))


@every_method
@every_merge
def test_adapters_and_weights_permuted_together_change_nothing(method, sources, weights):
    sources, weights = taken(method, sources, weights)
    turned = merged(sources[1:] + sources[:1], method, weights[1:] + weights[:1])
    claim(True, [distance(turned, merged(sources, method, weights))])


ENCODINGS = {  # of scale 2, as alpha given to rank r
    "alpha/r": lambda r: {"lora_alpha": 2 * r},
    "alpha/√r": lambda r: {"lora_alpha": 2 * r**0.5, "use_rslora": True},
    "alpha_pattern": lambda r: {"lora_alpha": 1, "alpha_pattern": {"q": 2 * r, "v": 2 * r}},
}


def encoded(source, encoding):
    """The adapter at twice its strength, as a state dict with a config."""
    state = {}
    for target, u in source.items():
        state[f"base_model.model.{target.path}.lora_A.weight"] = u.down
        state[f"base_model.model.{target.path}.lora_B.weight"] = u.up * u.scale
    config = {"peft_type": "LORA", "r": source.rank, **ENCODINGS[encoding](source.rank)}
    return replace(from_state_dict(state, config), name=source.name)


@every_method
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_how_a_config_spells_the_scale_is_nothing(method, encoding):
    sources, weights = taken(method, *MERGES["three of different rank"])
    said = merged([encoded(source, encoding) for source in sources], method, weights)
    plain = merged(each(sources, lambda u: u * 2.0), method, weights)
    claim(True, [distance(said, plain)])


# --- what comes back ------------------------------------------------------------------------------


@every_method
def test_one_adapter_comes_back_as_itself(method):
    """Also if it holds a unit twice, but for methods bound to the raw factors, which take the two for one."""
    alone = [sources[0] for sources, _ in merges_for(method)]
    if method.traits.gauge == "invariant":
        alone += each(alone, doubled)
    again = [distance(merged([a], with_room(method, a.rank), [1.0]), dense(a)) for a in alone]
    claim(method.traits.identity, again)


@every_method
def test_without_a_rank_the_merge_is_the_sum_if_the_method_says_so(method):
    free = with_room(method, None)
    apart = [
        distance(merged(s, free, w), weighted(s, free.weights(np.array(w)))) for s, w in merges_for(method)
    ]
    claim(method.traits.exact, apart)


def copies(method, weight_of_each):
    """How far copies of one adapter, so weighted, are from one at a weight of 1.7 and of -0.8."""
    count = method.traits.most or 3
    turned, signed = -0.8, method.traits.negative and method.traits.given == "weight"
    for sources, _ in merges_for(method):
        for weight in (1.7, turned if signed else 0.8):
            one = merged(sources[:1], method, [weight])
            yield distance(merged(sources[:1] * count, method, [weight_of_each(weight, count)] * count), one)


@every_method
def test_copies_that_share_a_weight_equal_one_that_has_it(method):
    declared = method.traits.weights
    if declared != "consensus":  # a mean of copies is the adapter at any weights
        claim(declared == "additive", copies(method, lambda w, n: w / n))


@every_method
def test_copies_at_the_same_weight_equal_one(method):
    claim(method.traits.weights == "consensus", copies(method, lambda w, _: w))


@every_method
def test_copies_beside_other_adapters_add_up_in_the_linear_family(method):
    if method.traits.family == "linear":
        (a, b, c), _ = MERGES["three of different rank"]
        method = with_room(method, 4) if not method.traits.exact else method
        apart = distance(merged([a, b, a, c], method, [1, 2, 2, 1]), merged([a, b, c], method, [3, 2, 1]))
        claim(True, [apart])


@every_method
def test_all_sources_times_a_number_give_the_merge_times_it(method):
    def apart(sources, weights, c):
        larger = merged(each(sources, lambda u: u * c), method, weights)
        return distance(
            {path: matrix / c for path, matrix in larger.items()}, merged(sources, method, weights)
        )

    claim(method.traits.homogeneous, [apart(s, w, c) for s, w in merges_for(method) for c in (30.0, 0.01)])


@every_method
@every_merge
@pytest.mark.parametrize(("weight", "length"), [(0.0, 1.0), (1.0, 1.0), (1.0, 1e8)])
def test_an_untrained_adapter_adds_nothing(method, sources, weights, weight, length):
    """Its lora_B is zero, whatever its lora_A. In a mean it still counts, unless its weight is zero."""
    sources, weights = taken(method, sources, weights)
    untrained = changed(zero(sources[0]), lambda u: LowRank(u.up, u.down * length, u.scale))
    sources, weights = (list(all_)[: (method.traits.most or 0) - 1 or None] for all_ in (sources, weights))
    more = merged([*sources, untrained], method, [*weights, weight])
    before = merged(sources, method, weights)
    something = any(matrix.any() for matrix in before.values())  # nothing cannot be diluted
    shares, alone = (method.weights(np.array(each)) for each in ([*weights, weight], weights))
    shifted = method.traits.given == "similarity" and np.abs(shares[:-1] - alone).max() > LOOSE
    claim(not (shifted or (method.traits.shares and weight != 0 and something)), [distance(more, before)])


@every_method
@every_merge
def test_an_adapter_of_weight_zero_adds_nothing(method, sources, weights):
    sources, weights = taken(method, sources, weights)
    strong = changed(sources[0], lambda u: u * 1e8)
    more = merged([*sources, strong], method, [*weights, 0.0])
    claim(True, [distance(more, merged(sources, method, weights))])


@every_method
def test_a_negative_number_is_as_good_as_zero_only_if_numbers_are_similarities(method):
    if not method.traits.negative:
        return  # refused, as another law says
    count = method.traits.most

    def apart(sources, weights):
        none, negative = ([*weights[:-1], last] for last in (0.0, -0.7))
        return distance(merged(sources, method, negative), merged(sources, method, none))

    found = [apart(sources[:count], [1.0] * len(sources[:count])) for sources, _ in MERGES.values()]
    claim(method.traits.given == "similarity", found)


@every_method
@every_merge
def test_no_module_gets_more_units_than_asked_for(method, sources, weights):
    sources, weights = taken(method, sources, weights)
    merge = combine(sources, method, weights=weights, threads=1)
    asked = getattr(merge.method, "rank", None)

    def units(target):
        numbers = (
            method.weights(np.array(weights))
            if method.traits.given == "similarity"
            else np.ones(len(sources))
        )
        counted = [source for source, number in zip(sources, numbers, strict=True) if number]
        ranks = [source[target].rank for source in counted if target in source]
        total = sum(ranks) if method.traits.units == "any" else max(ranks)
        rule = getattr(method, "rule", method)  # of a method with masks
        full = method.traits.sums or getattr(rule, "space", "") == "dense"
        return min(asked or total, total, min(merge.adapter[target].shape) if full else total)

    assert {slot.rank for slot in merge.adapter.slots.values()} == {max(map(units, merge.adapter))}


@pytest.mark.parametrize("method", [m for m in ROWS.values() if m.traits.most], ids=repr)
def test_more_sources_than_a_method_takes_are_refused(method):
    """The others take the four of one merge above."""
    count = method.traits.most + 1
    with pytest.raises(UsageError, match=f"{count} have a weight"):
        merged(random_adapters(0, (2,) * count), method)


@every_method
def test_weights_below_zero_are_refused_where_they_mean_nothing(method):
    sources, weights = random_adapters(0, (2, 2)), [1.0, -0.5]
    if method.traits.negative:
        assert all(np.isfinite(matrix).all() for matrix in merged(sources, method, weights).values())
    else:
        with pytest.raises(UsageError, match=r"no weight below zero; source 2 has -0\.5"):
            merged(sources, method, weights)


@every_method
def test_sources_that_do_not_fit_together_are_refused_by_the_module(method):
    """Of another rank, or with an A of their own, where unit i of one goes with unit i of the other."""
    for ranks, refused in (((2, 3), method.traits.units != "any"), ((2, 2), method.traits.units == "shared")):
        sources = random_adapters(0, ranks)
        if refused:
            with pytest.raises(IncompatibleError, match=r"layers\.0\.[qv] "):
                merged(sources, method, [1.0, 1.0])
        else:
            assert all(np.isfinite(matrix).all() for matrix in merged(sources, method, [1.0, 1.0]).values())


# --- numbers --------------------------------------------------------------------------------------


@every_method
@every_merge
def test_sources_are_left_as_they_were(method, sources, weights):
    sources, weights = taken(method, sources, weights)
    before = [fingerprint(source) for source in sources]
    combine(sources, method, weights=weights, threads=1)
    assert [fingerprint(source) for source in sources] == before


@every_method
@every_merge
def test_float32_sources_merge_as_float64_ones_do(method, sources, weights):
    sources, weights = taken(method, sources, weights)
    single = merged([cast(source, np.float32) for source in sources], method, weights)
    assert distance(single, merged(sources, method, weights)) < 1e-5


@every_method
@every_merge
def test_bfloat16_sources_are_rounded_once_at_the_end(method, sources, weights):
    """The written factors are those of the float64 merge of the same values, each rounded once."""
    sources, weights = taken(method, sources, weights)
    stored = [cast(source, ml_dtypes.bfloat16) for source in sources]
    brief = combine(stored, method, weights=weights, threads=1).adapter
    wide = [cast(source, np.float64) for source in stored]
    exact = combine(wide, method, weights=weights, dtype="float64", threads=1).adapter
    assert brief.dtype == "BF16"
    assert fingerprint(brief) == fingerprint(cast(exact, ml_dtypes.bfloat16))
    assert distance(dense(brief), dense(exact)) < 2**-7


@every_method
@pytest.mark.parametrize("untrained", [[0], [1, 2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("weights", [[1.0, -0.5, 2.0], [1.0, 0.0, 0.0]], ids=str)
def test_zeros_never_become_nan(method, untrained, weights):
    sources = [zero(a) if t in untrained else a for t, a in enumerate(MERGES["three of different rank"][0])]
    sources, weights = taken(method, sources, weights)
    merge = combine(sources, method, weights=weights, threads=1)
    numbers = method.weights(np.array(weights))
    left = [t for t in range(len(sources)) if t not in untrained and numbers[t]]
    for matrix in dense(merge.adapter).values():
        assert np.isfinite(matrix).all()
        assert matrix.any() == bool(left) or (left and method.traits.vanishes)
    assert "NaN" not in json.dumps(merge.report.to_dict())
    assert str(merge.report)


# --- the same bytes -------------------------------------------------------------------------------


def fingerprint(source: Adapter):
    mark = hashlib.sha256()
    for target, u in source.items():
        mark.update(f"{target} {u.scale} {u.up.dtype} {u.up.shape} {u.down.shape}".encode())
        mark.update(np.ascontiguousarray(u.up).tobytes() + np.ascontiguousarray(u.down).tobytes())
    return mark.hexdigest()


def many_modules():
    shapes = {f"layers.{i}.{name}": (7 + i, 9) for i in range(4) for name in "qv"}
    return random_adapters(8, (3, 2, 3), shapes), [1.0, -0.5, 2.0]


def bytes_of(method, threads=1, turn=list):
    sources, weights = taken(method, *many_modules())
    sources = [replace(s, slots=dict(turn(s.slots.items()))) for s in sources]
    return fingerprint(combine(sources, method, weights=weights, threads=threads).adapter)


@every_method
def test_the_bytes_do_not_depend_on_the_threads(method):
    assert len({bytes_of(method, threads) for threads in (1, 2, 5)}) == 1


@every_method
def test_the_bytes_do_not_depend_on_the_order_of_the_modules(method):
    assert bytes_of(method, turn=lambda items: reversed(list(items))) == bytes_of(method)


def test_the_bytes_do_not_depend_on_the_hash_seed():
    root = Path(__file__).parents[1]
    script = "from tests.laws import ROWS, bytes_of; print([bytes_of(m, 2) for m in ROWS.values()])"

    def under(seed):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        return subprocess.run(
            [sys.executable, "-c", script], cwd=root, env=env, check=True, capture_output=True, text=True
        ).stdout

    here = str([bytes_of(method, 2) for method in ROWS.values()]) + "\n"
    assert {under(seed) for seed in ("0", "1", "12345")} == {here}


# --- what a merge comes to, by dense arithmetic ---------------------------------------------------


@st.composite
def merges(draw, equal_ranks=False):
    """(adapters, weights) of random shapes, ranks and signs."""
    count = draw(st.integers(1, 4))
    sizes = st.integers(1, 8)
    ranks = [draw(sizes)] * count if equal_ranks else draw(st.lists(sizes, min_size=count, max_size=count))
    shapes = {f"m{i}": (draw(sizes) + 1, draw(sizes) + 1) for i in range(draw(st.integers(1, 3)))}
    weights = [draw(st.sampled_from([-2.0, -0.5, 0.25, 1.0, 3.0])) for _ in range(count)]
    return random_adapters(draw(st.integers(0, 999)), ranks, shapes, scale=0.5), weights


few = settings(max_examples=80, deadline=None, derandomize=True)


def test_every_method_is_held_to_the_laws():
    assert {type(method) for method in ROWS.values()} == set(METHODS.values())


@few
@given(merges())
def test_cat_and_linear_are_the_weighted_sum(case):
    sources, weights = case
    for method in ("cat", "linear"):
        assert distance(merged(sources, method, weights), weighted(sources, weights)) < 1e-12


@few
@given(merges())
def test_average_is_the_weighted_mean(case):
    sources, weights = case
    if sum(weights):
        mean = weighted(sources, np.array(weights) / sum(weights))
        assert distance(merged(sources, "average", weights), mean) < 1e-12
    else:
        with pytest.raises(UsageError, match="sum to zero"):
            merged(sources, "average", weights)


@few
@given(merges(), st.integers(1, 9))
def test_a_rank_gives_the_best_approximation_of_the_sum(case, rank):
    sources, weights = case
    best = {path: truncated(total, rank) for path, total in weighted(sources, weights).items()}
    for method in ("svd", "linear"):
        assert distance(merged(sources, method, weights, rank=rank), best) < 1e-9


@few
@given(merges())
def test_lego_with_room_for_all_units_is_the_sum(case):
    sources, weights = case
    room = sum(source.rank for source in sources)
    for options in ({}, {"features": "normalised"}, {"variant": "ctm"}):
        whole = merged(sources, "lego", weights, rank=room, **options)
        assert distance(whole, weighted(sources, weights)) < 1e-9


@few
@given(merges(equal_ranks=True))
def test_nsc_with_room_for_all_units_is_the_sum_over_the_root_of_their_number(case):
    sources, weights = case
    room = sum(source.rank for source in sources)
    share = np.array(weights) / np.sqrt(len(sources))
    whole = merged(sources, "lego", weights, variant="nsc", rank=room)
    assert distance(whole, weighted(sources, share)) < 1e-9


@few
@given(merges(), st.sampled_from([0.3, 0.5, 0.9, 0.99, 1.0]))
def test_energy_takes_the_smallest_rank_that_keeps_it_everywhere(case, energy):
    sources, weights = case
    squares = [np.linalg.svd(m, compute_uv=False) ** 2 for m in weighted(sources, weights).values()]
    enough = [
        next(k for k in range(1, len(s) + 1) if s[:k].sum() >= energy * s.sum() * (1 - 1e-10))
        for s in squares
    ]
    for method in ("svd", "linear"):
        merge = combine(sources, method, weights=weights, energy=energy, dtype="float64", threads=1)
        assert merge.method.rank == max(enough)
        kept = {m.name: 1 - m.energy_lost for m in merge.report.modules}
        assert min(kept.values()) >= energy - 1e-10


def test_all_of_the_energy_is_the_sum():
    for sources, weights in MERGES.values():
        whole = merged(sources, "svd", weights, energy=1.0)
        assert distance(whole, weighted(sources, weights)) < 1e-9


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [0.1 + 0.2, -0.3]], ids=str)
def test_weights_that_sum_to_zero_have_no_mean(weights):
    with pytest.raises(UsageError, match="sum to zero, so they have no mean: use --method linear"):
        merged(random_adapters(0, (2, 2)), "average", weights)


# --- hard cases -----------------------------------------------------------------------------------


def nearly_shared(offset, count=4, rank=4, shape=(24, 30)):
    """As trained from one seed: the same A in all, but for a small offset."""
    rng = np.random.default_rng(11)
    common = rng.standard_normal((rank, shape[1]))

    def one():
        return LowRank(
            rng.standard_normal((shape[0], rank)), common + offset * rng.standard_normal(common.shape)
        )

    return [Adapter.of({"q": one(), "v": one()}) for _ in range(count)]


every_offset = pytest.mark.parametrize("offset", [1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 0.0])


@every_offset
@pytest.mark.parametrize("method", TRUNCATING.values(), ids=TRUNCATING)
@pytest.mark.parametrize("rank", [1, 3, 4, 5, 8, 16])
def test_truncation_stays_optimal_where_the_sources_nearly_share_a(method, offset, rank):
    sources, weights = nearly_shared(offset), [1.0, -0.5, 2.0, 1.0]
    found = merged(sources, replace(method, rank=rank), weights)
    for path, total in weighted(sources, method.weights(np.array(weights))).items():
        least = np.linalg.norm(total - truncated(total, rank))
        assert np.linalg.norm(total - found[path]) - least <= 1e-7 * np.linalg.norm(total)


@every_offset
@pytest.mark.parametrize("features", ["raw", "normalised"])
def test_lego_is_finite_and_exact_where_the_sources_nearly_share_a(offset, features):
    sources, weights = nearly_shared(offset), [1.0, -0.5, 2.0, 1.0]
    for rank in (1, 4, 7):
        some = merged(sources, "lego", weights, rank=rank, features=features)
        assert all(np.isfinite(matrix).all() for matrix in some.values())
    whole = merged(sources, "lego", weights, rank=16, features=features)
    assert distance(whole, weighted(sources, weights)) < 1e-7


@pytest.mark.parametrize("method", [Svd(rank=8), Linear(), Cat(), Lego(rank=8)], ids=repr)
def test_units_of_very_different_strength_keep_the_weak_ones_to_the_norm_of_all(method):
    rng = np.random.default_rng(12)

    def graded(u):
        return LowRank(u.up * np.logspace(0, -12, u.rank), u.down, u.scale)

    sources = [changed(Adapter.of({"q": update(rng, 4, (20, 30))}), graded) for _ in range(2)]
    assert distance(merged(sources, method), weighted(sources, [1, 1])) < 2e-7


def test_a_gap_between_the_sources_of_many_orders_is_no_obstacle():
    """One adapter is 1e-9 of the other: the sum is the strong one, and nothing overflows or vanishes."""
    (a, b), _ = MERGES["two of one rank"]
    for method in chain(ROWS.values()):
        if method.traits.family == "linear":
            exact = with_room(method, 6) if not method.traits.exact else with_room(method, None)
            total = weighted([a, b], exact.weights(np.array([1.0, 1e-9])))
            assert distance(merged([a, b], exact, [1.0, 1e-9]), total) < 1e-9
