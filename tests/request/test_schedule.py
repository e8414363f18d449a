"""Ramps over depth and rules by name: each module is merged as if it were alone with its own weights."""

from dataclasses import replace

import numpy as np
import pytest

import loramerge as lm
from loramerge.algorithms import METHODS
from loramerge.errors import UsageError
from tests.helpers.adapters import changed, dense, distance, random_adapters, truncated, weighted

SHAPES = {f"layers.{n}.{m}": (7, 9) for n in range(5) for m in ("q", "v")} | {"head": (6, 8)}
SOURCES = random_adapters(0, [2, 3], SHAPES)
LOW, HIGH = [1.0, -0.5], [0.2, 2.0]


def part(paths, sources=SOURCES):
    """The sources, on these modules only."""
    return [lm.Adapter.of({p: s[lm.Target(p)] for p in paths}, s.name) for s in sources]


def turned(u):
    """Another update with the same A."""
    return lm.LowRank(u.up[::-1], u.down, u.scale)


def combined(**options):
    return dense(lm.combine(SOURCES, dtype="float64", threads=1, **options).adapter)


def test_a_ramp_goes_evenly_from_the_first_layer_to_the_last():
    found = combined(weights=[lm.Ramp(a, b) for a, b in zip(LOW, HIGH, strict=True)])
    for path in SHAPES:
        depth = int(path.split(".")[1]) / 4 if "." in path else 0.5
        weights = [(1 - depth) * a + depth * b for a, b in zip(LOW, HIGH, strict=True)]
        wanted = weighted(part([path]), weights)
        assert distance({path: found[path]}, wanted) < 1e-14


def test_a_ramp_that_stays_level_is_the_weight_itself_bit_by_bit():
    level = combined(weights=[lm.Ramp(0.1, 0.1), lm.Ramp(-0.3, -0.3)])
    plain = combined(weights=[0.1, -0.3])
    assert all(np.array_equal(level[path], plain[path]) for path in plain)


@pytest.mark.parametrize("shapes", [{"layers.3.q": (7, 9)}, {"layers.3.q": (7, 9), "layers.3.v": (5, 4)}])
def test_of_one_layer_the_first_weight_counts(shapes):
    sources = random_adapters(1, [2], shapes)
    merge = lm.combine(sources, weights=[lm.Ramp(2, 5)], dtype="float64")
    assert distance(dense(merge.adapter), weighted(sources, [2])) < 1e-14


def test_only_does_not_shift_a_ramp():
    weights = [lm.Ramp(0, 1), lm.Ramp(1, 0)]
    whole, half = combined(weights=weights), combined(weights=weights, only=r"\.[34]\.")
    assert half
    assert distance(half, {path: whole[path] for path in half}) < 1e-14


@pytest.mark.parametrize("name", METHODS)
def test_a_rule_merges_its_modules_as_if_they_were_alone(name):
    method = METHODS[name]()
    if method.observes:  # of whole adapters, which the other modules belong to
        method = replace(method, scope="module")
    rules = [lm.Rule(r"\.v$", (0.5, 2.0)), lm.Rule(r"layers\.1", (3.0, 1.0))]
    traits = method.traits
    least = -0.25 if traits.negative else 0.25
    sources = SOURCES if traits.units == "any" else [SOURCES[0], changed(SOURCES[0], turned)]
    found = dense(lm.combine(sources, method, weights=[1, least], rules=rules, dtype="float64").adapter)
    shares = {(0.5, 2.0): r".v", (3.0, 1.0): "layers.1.q", (1, least): None}
    for weights, end in shares.items():
        rest = [p for p in SHAPES if not p.endswith(".v") and p != "layers.1.q"]
        paths = rest if end is None else [p for p in SHAPES if p.endswith(end)]
        alone = lm.combine(part(paths, sources), method, weights=weights, dtype="float64", threads=1)
        assert distance({p: found[p] for p in paths}, dense(alone.adapter)) < 1e-12


def test_a_rank_in_a_rule_is_for_its_modules_only():
    merge = lm.combine(SOURCES, "svd", rank=2, rules=[lm.Rule("v$", rank=1)], dtype="float64")
    found, exact = dense(merge.adapter), weighted(SOURCES, [1, 1])
    wanted = {path: truncated(exact[path], 1 if path.endswith("v") else 2) for path in exact}
    assert distance(found, wanted) < 1e-7
    assert merge.adapter.rank == 2
    assert lm.combine(SOURCES, "svd", rank=2, rules=[lm.Rule("q", rank=5)]).adapter.rank == 5


def test_a_rank_in_a_rule_takes_the_place_of_energy():
    rules = [lm.Rule("head", rank=1)]
    merge = lm.combine(SOURCES, "svd", energy=0.6, rules=rules, dtype="float64")
    assert np.linalg.matrix_rank(dense(merge.adapter)["head"], tol=1e-6) == 1
    without = lm.combine(SOURCES, "svd", energy=0.6, exclude="head", dtype="float64")
    assert merge.method == without.method, "a module with a rank of its own has no say in the common one"


def test_the_report_compares_every_module_with_its_own_weighted_sum():
    rules = [lm.Rule(r"v\b", (2.0, 0.0)), lm.Rule("head", (lm.Ramp(1, 3), 0.0))]
    report = lm.combine(SOURCES, rules=rules, weights=[lm.Ramp(0, 1), 1.0], dtype="float64").report
    assert report.energy_lost < 1e-15
    assert report.weights == (0.5, 1.0)
    assert report.notes[:3] == (
        "the weight of source0 goes from 0 in layer 0 to 1 in layer 4; the table shows the middle",
        r"5 modules follow the rule for 'v\b'",
        "1 module follows the rule for 'head'",
    )


def test_average_takes_the_mean_in_every_module():
    found = combined(method="average", weights=[lm.Ramp(0, 1), lm.Ramp(1, 0)])
    for layer, share in ((0, 0.0), (1, 0.25), (4, 1.0)):
        path = f"layers.{layer}.q"
        assert distance({path: found[path]}, weighted(part([path]), [share, 1 - share])) < 1e-14


WRONG = {
    "too few weights": ({"rules": [lm.Rule("q", (1.0,))]}, "1 weights for 2 adapters"),
    "a ramp of nan": ({"weights": [lm.Ramp(0, float("nan")), 1]}, "nan, which is not a finite number"),
    "no regular expression": ({"rules": [lm.Rule("(")]}, r"match '\(' is not a regular expression"),
    "a rank for cat": ({"method": "cat", "rules": [lm.Rule("q", rank=1)]}, "rank is an option of"),
    "rank 0": ({"rules": [lm.Rule("q", rank=0)]}, "rank=0 is not in the range"),
    "no mean": ({"method": "average", "rules": [lm.Rule("q", (1, -1))]}, "sum to zero"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "words"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_meant_is_a_usage_error(options, words):
    with pytest.raises(UsageError, match=words):
        lm.combine(SOURCES, **options)
