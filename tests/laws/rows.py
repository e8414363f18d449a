"""The methods that are held to the laws, the merges they are tried on, and what it means to hold.

Every law runs over every row of `ROWS` and over the same few merges. A law that a row does not declare is
turned into its counter-test, so a wrong declaration fails either way. Every method and every merge is here
in every run; each method on each merge, and more of their variants, with `-m slow`.
"""

import hashlib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

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
    DcMerge,
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
    Level,
    Linear,
    LowRank,
    Magnitude,
    MergeVla,
    ModelStock,
    Pico,
    Sce,
    Sg,
    ShrunkTsv,
    Slerp,
    Svd,
    Ties,
    Tsv,
    Wudi,
)
from loramerge.algorithms.families.size import Ranked
from loramerge.algorithms.table import RULES
from tests.helpers.adapters import changed, merged, random_adapters

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
    "svd, power": Svd(power=0.5),
    "svd, power, 90 %": Svd(power=0.75, energy=0.9),
    "svd, boost": Svd(boost=0.5, rank=12),
    "svd, boost, 90 %": Svd(boost=0.8, energy=0.9),
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
    "mergevla, ties": MergeVla(rule="ties"),
    "mergevla, emr": MergeVla(rule="emr", rank=3),
    "mergevla, consensus": MergeVla(consensus=1),
    "iso_c": IsoC(),
    "iso_c, rank 3": IsoC(rank=3),
    "iso_c, 90 %": IsoC(energy=0.9),
    "knots": Knots(density=0.5),
    "knots, all": Knots(density=1.0),
    "knots, rank 3": Knots(rank=3),
    "knots, 90 %": Knots(energy=0.9),
    "knots, by shares": Knots(ranking="shares", density=0.5),
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
    "shrunk_tsv": ShrunkTsv(),
    "shrunk_tsv, whole spectra": ShrunkTsv(power=1.0),
    "shrunk_tsv, rank 3": ShrunkTsv(rank=3),
    "shrunk_tsv, 90 %": ShrunkTsv(power=0.5, energy=0.9),
    "shrunk_tsv, hard": ShrunkTsv(shrink=0.0),
    "shrunk_tsv, no whitening": ShrunkTsv(shrink=1.0),
    "level": Level(),
    "level, by module": Level(scope="module"),
    "level, rank 3": Level(rank=3),
    "level, 90 %": Level(energy=0.9),
    "level, whole spectra": Level(power=1.0, fade=0.0),
    "dc_merge": DcMerge(),
    "dc_merge, mean": DcMerge(smooth="mean"),
    "dc_merge, dense": DcMerge(density=0.5),
    "dc_merge, rank 3": DcMerge(rank=3),
    "dc_merge, 90 %": DcMerge(energy=0.9),
    "pico": Pico(),
    "pico, rank 3": Pico(rank=3),
    "pico, 90 %": Pico(energy=0.9),
    "pico, both sides": Pico(sides="both"),
    "pico, both sides, ties": Pico(sides="both", rule="ties"),
    "pico, ties": Pico(rule="ties", density=0.2),
    "pico, ties, all": Pico(rule="ties", density=1.0),
    "pico, dare": Pico(rule="dare", rank=3),
    "core, sum": Core(rule="sum"),
    "compress, then sum": Ctm(rule="sum", rank=3),
    "wudi": Wudi(),
    "wudi, hard": Wudi(ridge=1e-9),
    "wudi, rank 3": Wudi(rank=3),
    "wudi, 90 %": Wudi(energy=0.9),
    "wudi, flow": Wudi(filter="flow"),
    "wudi, flow from the sum": Wudi(filter="flow", start="sum"),
    "wudi, top": Wudi(filter="top"),
    "wudi, top from the sum, rank 3": Wudi(filter="top", start="sum", rank=3),
    "wudi, from the sum": Wudi(start="sum"),
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
ROWS |= {name: cls() for name, cls in METHODS.items() if cls not in set(map(type, ROWS.values()))}
ROWS |= {  # every rule in every method that takes it
    f"{name}, by {rule}": taker(rule=rule)
    for name, taker in {"core": Core, "compress, then": Ctm, "pico": Pico, "knots": Knots}.items()
    for rule in RULES
}
ROWS |= {f"mergevla, on {rule}": MergeVla(rule=rule) for rule in RULES}
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
    "shrunk_tsv, whole spectra",
    "level, by module",
    "level, rank 3",
    "dc_merge, mean",
    "svd, power",
    "svd, boost",
    "wudi, flow from the sum",
    "wudi, top",
    "pico, both sides",
    "pico, ties",
    "core, rank 3",
    "compress, then merge",
    "compress, then merge, dare_ties",
    "knots, by shares",
    "knots, dare_ties",
    "slerp, whole adapters",
    "fair, λ = 0",
    "ties, core",
    "ties, over the adapter",
    "dare, core",
    "mergevla, ties",
    "sg, warm",
}
SOME = 3  # of the merges, or of what else a law tries, for a method in every run


def some(items, start):
    """Neighbours on the ring of all items, so that as many methods meet each."""
    items = list(items)
    return [items[(start + i) % len(items)] for i in range(min(SOME, len(items)))]


def slow_unless(quick):
    return () if quick else pytest.mark.slow


every_method = pytest.mark.parametrize(
    "method",
    [pytest.param(m, id=n, marks=slow_unless(n in QUICK)) for n, m in ROWS.items()]
    + [pytest.param(ROWS[n], id=f"{n}, on all", marks=pytest.mark.slow) for n in ROWS if n in QUICK],
)  # what a law tries in a loop is `chosen` for it: some of it in every run, and all of it if it is slow
FIRST = {type(m): n for n, m in reversed(ROWS.items())}
every_kind = pytest.mark.parametrize(
    "method", [pytest.param(m, id=n, marks=slow_unless(n in FIRST.values())) for n, m in ROWS.items()]
)  # for what takes long: one row of each method, the others with -m slow
every_pair = pytest.mark.parametrize(
    ("method", "sources", "weights"),
    [
        pytest.param(m, *MERGES[k], id=f"{n}-{k}", marks=slow_unless(n in QUICK and k in some(MERGES, i)))
        for i, (n, m) in enumerate(ROWS.items())
        for k in MERGES
    ],
)


@cache
def alike(sources, shared):
    """The adapters at one rank in every module, and with one A there if it is to be shared."""
    had = {target: [s[target] for s in sources if target in s] for source in sources for target in source}

    def cut(target, u):
        rank = min(each.rank for each in had[target])
        return LowRank(u.up[:, :rank], (had[target][0] if shared else u).down[:rank], u.scale)

    return tuple(Adapter.of({t.path: cut(t, s[t]) for t in s}, s.name) for s in sources)


def taken(method, sources, weights):
    """As many of the sources as the method takes, of ranks that it takes, at weights that it knows."""
    traits = method.traits
    sources, weights = sources[: traits.most], weights[: traits.most]
    sources = sources if traits.units == "any" else list(alike(tuple(sources), traits.units == "shared"))
    return sources, weights if traits.negative else [abs(weight) for weight in weights]


def plain(sources, method, weights):
    """The merge of sources as they are, with which many laws compare another: each is made once.

    That it would be the same if it were made again is a law of its own, in test_bytes.
    """
    return _plain(tuple(sources), method, tuple(weights))


@cache
def _plain(sources, method, weights):
    made = merged(sources, method, weights)
    for matrix in made.values():
        matrix.flags.writeable = False
    return made


def merges_for(method, declared, chosen):
    """The chosen merges, where a law is declared; its counter-test looks until one of all differs."""
    return (taken(method, *merge) for merge in (chosen(MERGES.values()) if declared else MERGES.values()))


def claim(declared, differences):
    """The law if it is declared, its counter-test if not."""
    if not declared:
        assert any(difference > LOOSE for difference in differences), "it holds, and is not declared"
        return
    worst = max(differences)
    assert worst < TIGHT, f"declared, but the difference is {worst:.1e}"


def with_room(method, rank):
    """The same method with space for `rank` units."""
    return replace(method, rank=rank, energy=None) if isinstance(method, Ranked) else method


def each(sources, change):
    return [changed(source, change) for source in sources]


def fingerprint(source: Adapter):
    mark = hashlib.sha256()
    for target, u in source.items():
        mark.update(f"{target} {u.scale} {u.up.dtype} {u.up.shape} {u.down.shape}".encode())
        mark.update(np.ascontiguousarray(u.up).tobytes() + np.ascontiguousarray(u.down).tobytes())
    return mark.hexdigest()
