"""What is said to make a too strong merge weaker does make it so, and nothing else is named."""

import re

import numpy as np
import pytest

import loramerge as lm
from tests.helpers.adapters import random_adapters

EIGHT = random_adapters(0, (2,) * 8)
APART = [
    adapter
    for n in range(4)
    for adapter in random_adapters(n, (2,), {f"layers.{n}.q": (7, 9), f"layers.{n}.v": (8, 6)})
]
ASKED = {
    "a sum of eight": (EIGHT, {"method": "linear"}),
    "a scale": (EIGHT[:2], {"method": "linear", "scale": 3.0}),
    "a scale on eight": (EIGHT, {"method": "svd", "rank": 4, "scale": 3.0}),
    "the default, with a scale": (EIGHT, {"method": "level", "scale": 4.0}),
    "the default, with weights": (EIGHT[:2], {"method": "level", "weights": [3, 3]}),
    "large weights": (EIGHT[:3], {"weights": [3, -3, 2]}),
    "one source": (EIGHT[:1], {"weights": [3]}),
    "one source by level": (EIGHT[:1], {"method": "level", "weights": [-3]}),
    "one of two has a weight": (EIGHT[:2], {"weights": [3, 0]}),
    "a negative scale": (EIGHT[:2], {"method": "average", "scale": -4.0}),
    "copies": (EIGHT[:1] * 3, {"method": "linear"}),
    "weights by module": (EIGHT[:2], {"method": "linear", "rules": [lm.Rule("q", weights=[9.0, 9.0])]}),
    "layers apart": (APART, {"method": "linear", "allow_disjoint": True}),
    "layers apart by level": (APART, {"method": "level", "allow_disjoint": True}),
    "layers apart, louder": (APART, {"method": "linear", "allow_disjoint": True, "scale": 2.0}),
    "masks": (EIGHT, {"method": "mergevla"}),
    "no sum": (EIGHT, {"method": "emr"}),
    "no sum, with a scale": (EIGHT, {"method": "ties", "scale": 20.0}),
}


def followed(asked, said):
    """The same call with each remedy that was named, by its words."""
    if "smaller weights" in said:
        count = len(asked["sources"])
        given = asked.get("weights") or [1.0] * count
        yield "weights", {**asked, "weights": [w / 20 for w in given]}
    for name, value in re.findall(r"with (\w+)='(\w+)'", said):
        kept = {k: v for k, v in asked.items() if name != "method" or k not in ("rank",)}
        yield name, {**kept, name: value}
    if "without scale=" in said:
        yield "scale", {k: v for k, v in asked.items() if k != "scale"}


@pytest.mark.parametrize(("sources", "asked"), ASKED.values(), ids=ASKED)
def test_every_remedy_that_is_named_helps(sources, asked):
    asked = {"sources": [*sources], **asked}
    report = lm.combine(**asked).report
    assert report.strength > 1.5
    assert report.too_strong is not None
    ways = list(followed(asked, report.too_strong))
    assert ways or "smaller scale" in report.too_strong
    for name, again in ways:
        if name == "weights" and "rules" in asked:  # whose weights are in the rule
            again = {k: v for k, v in again.items() if k != "weights"}
            again["rules"] = [lm.Rule("q", weights=[0.4, 0.4])]
        found = lm.combine(**again).report
        assert found.too_strong is None or found.strength < 0.6 * report.strength, name
        assert found.strength < report.strength


def test_what_would_not_help_is_not_named():
    def said(name):
        sources, asked = ASKED[name]
        return lm.combine(sources, **asked).report.too_strong

    for name in ("the default, with a scale", "the default, with weights", "one source", "layers apart"):
        assert "method='level'" not in said(name), name
    for name in ("masks", "layers apart", "layers apart by level"):
        assert "scale='norm'" not in said(name), name
    assert "smaller weights" not in said("no sum, with a scale")
    assert "method=" not in said("masks")
    assert "without scale=3.0" in said("a scale")
    assert "without scale=2.0" in said("layers apart, louder")
    assert "without scale" not in said("a scale on eight")


def test_of_one_source_it_speaks_of_one():
    assert "3 times as strong as its source is," in lm.combine(EIGHT[:1], weights=[3]).report.too_strong


def test_where_layers_are_apart_nothing_is_said_to_harm():
    said = lm.combine(APART, "linear", allow_disjoint=True).report.too_strong
    assert "as they change different modules" in said
    assert "harm" not in said


def test_a_source_without_a_weight_is_none_of_those_that_it_is_compared_with():
    faint = lm.Adapter.of({t.path: 0.01 * EIGHT[1][t] for t in EIGHT[1]}, "faint")
    report = lm.combine([EIGHT[0], faint], weights=[1, 0]).report
    assert report.strength == pytest.approx(1)
    assert report.too_strong is None
    assert lm.combine([EIGHT[0], faint], weights=[0, 1]).report.strength == pytest.approx(1)


def test_a_weight_that_passes_zero_in_the_middle_is_one():
    ramp = lm.combine(EIGHT[:2], weights=[lm.Ramp(-1, 1), 1]).report
    assert ramp.weights == (0, 1)
    norms = [ratio**-1 for ratio in ramp.norm_ratios]
    assert ramp.strength == pytest.approx(1 / np.mean(norms))


def test_more_units_than_level_can_merge_are_not_told_to_take_it():
    many = random_adapters(9, (9,) * 120, {"layers.0.q": (4, 5)})
    report = lm.combine(many, "linear").report
    assert report.strength > 1.5
    assert "method='level'" not in report.too_strong
    assert "scale='norm'" in report.too_strong
    assert np.isfinite(report.strength)
