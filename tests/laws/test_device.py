"""A method leaves its arrays where they are, or says here why it does not."""

import numpy as np
import pytest

from loramerge import METHODS, combine
from loramerge.algorithms.only import only
from loramerge.arrays.frames import framed
from loramerge.arrays.remix import Fitted, Remix
from loramerge.sources import units
from tests.helpers.adapters import units_of
from tests.helpers.device import Away, assert_alike, copies, down, numbers, up
from tests.laws.rows import MERGES, QUICK, ROWS, every_method, taken

COPIES = {  # a step of theirs is on the host, by `host`
    "iso_cts": "spectra say how many directions a module keeps, so its factorisations are of its own sizes",
    "karcher": "T² numbers a module, and each module stops at a step of its own",
    **dict.fromkeys(("core", "ctm", "pico"), "its rule goes through small cores one by one, on the host"),
    **dict.fromkeys(("slerp", "model_stock"), "T numbers say which side of the units a weight may go to"),
    "ffa": "whether the sources share A is told from T² numbers, in a sentence",
}
TILES = "it looks at entries of ΔW, tile by tile, from factors on the host"
HOST = {  # they refuse arrays of a device
    **dict.fromkeys(
        ("ties", "dare", "dare_ties", "magnitude", "della", "breadcrumbs", "sce", "emr", "mergevla"), TILES
    ),
    "knots": "its rule looks at rows of the input's size, from factors on the host",
}


def name_of(method):
    return METHODS.name_of(type(method))


def settled(method, weights, units, plain):
    """The method with nothing open, by a look at one batch as the driver looks at all."""
    while method.observes:
        seen = method.weigh(framed(plain, method.frame), weights)
        method = method.decide([down(method.observe(seen))], max(units.signature))
    return method.decide([], max(units.signature))


def remixed(method, weights, units, plain):
    chosen = settled(method, weights, units, plain)
    return chosen.remix(chosen.weigh(framed(plain, chosen.frame), weights))


def each_batch(method, merges):
    for merge in merges:
        sources, weights = taken(method, *merge)
        for batch in units_of(sources):
            yield method.weights(np.array(weights)), batch, batch.grams(balance=method.frame != "stored")


def outcome(method, merges):
    """``stays``, ``copies`` or ``refuses``, over the merges; where it stays the numbers are the host's."""
    found = set()
    for given in each_batch(method, merges):
        wanted = remixed(method, *given)
        if isinstance(wanted, Fitted):  # made from the factors, which are on the host
            found.add("refuses")
            continue
        try:
            with copies() as copied:
                made = remixed(method, *given[:-1], up(given[-1]))
        except TypeError:
            found.add("refuses")
            continue
        assert all(isinstance(side, Away) for side in sides(made))
        assert_alike(what(down(made), given[1]), what(wanted, given[1]), 1e-9)
        found.add("copies" if copied else "stays")
    return found


def what(result, units):
    """A merge without the signs and turns that two solvers may choose differently."""
    if not isinstance(result, Remix):
        return result
    dense = []
    for m in range(len(units.targets)):
        up, down = units.read(m)
        dense.append(up @ result.core[m] @ down)
    return dense, result.whole, None if result.cut is None else result.whole - result.cut, result.facts


def sides(result):
    remix = getattr(result, "remix", result)
    return remix.P, remix.Q


@every_method
def test_a_method_stays_on_the_device_or_says_why_not(method, chosen):
    name = name_of(method)
    more = {"refuses", "copies"} if name in HOST else {"copies"} if name in COPIES else set()
    allowed = {"stays"} | more

    assert outcome(method, chosen(MERGES.values())) <= allowed


@pytest.mark.parametrize("name", [*COPIES, *HOST])
def test_nobody_is_excused_in_vain(name):
    expected = "refuses" if name in HOST else "copies"
    rows = [row for key, row in ROWS.items() if name_of(row) == name and key in QUICK]

    assert any(expected in outcome(row, [merge]) for merge in MERGES.values() for row in rows)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(m, id=n, marks=() if n in QUICK else pytest.mark.slow)
        for n, m in ROWS.items()
        if name_of(m) not in HOST
    ],
)
def test_a_merge_from_factors_on_the_device_is_that_of_the_host(method, monkeypatch):
    sources, weights = taken(method, *MERGES["one module missing in one"])
    wanted = combine(sources, method, weights=weights, scale="norm")

    widened = units._widened
    monkeypatch.setattr(units, "_widened", lambda parts, axis: up(widened(parts, axis)))
    found = combine(sources, method, weights=weights, scale="norm")

    for target in wanted.adapter:
        made, expected = found.adapter[target], wanted.adapter[target]
        assert isinstance(made.up, np.ndarray)
        assert_alike(made.dense(), expected.dense(), 1e-9)
    assert_alike(numbers(found.report.modules), numbers(wanted.report.modules), 1e-9)


def test_modules_of_two_methods_stay_there_too(monkeypatch):
    sources, weights = MERGES["three of different rank"]
    method = only(ROWS["svd, rank 3"], "q$", otherwise=ROWS["lego, rank 3"])
    wanted = combine(sources, method, weights=weights)

    widened = units._widened
    monkeypatch.setattr(units, "_widened", lambda parts, axis: up(widened(parts, axis)))
    found = combine(sources, method, weights=weights)

    for target in wanted.adapter:
        assert_alike(found.adapter[target].dense(), wanted.adapter[target].dense(), 1e-9)
