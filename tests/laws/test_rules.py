"""Every rule of the table is a method, and a choice of all methods that leave entries to a rule.

Each takes it by its name, and makes of it what the plain loop on dense matrices makes of it. A new rule is
held to all of this by its line in the table.
"""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from loramerge import METHODS, Adapter, UsageError
from loramerge.algorithms.entries.block import whole
from loramerge.algorithms.table import RULES
from loramerge.cli.options import options_of
from tests.algorithms import spectral
from tests.helpers.adapters import dense, distance, merged, random_adapters

WEIGHTS = [1.0, -0.5, 2.0]


def alike():
    """Sources that have something in common, so that no rule is left with nothing."""
    common, *own = (next(iter(a.values())) for a in random_adapters(61, (2, 4, 3, 5), {"q": (24, 31)}))
    parts = [np.sign(weight) * 2 * common + each for weight, each in zip(WEIGHTS, own, strict=True)]
    return [Adapter.of({"q": part}, f"source{t}") for t, part in enumerate(parts)]


SOURCES = alike()
TAKERS = {  # method -> the option that names the rule, and its loop with any rule on matrices
    "core": ("rule", spectral.core, {}),
    "ctm": ("rule", spectral.ctm, {"k": 6}),
    "pico": ("rule", spectral.pico_by, {}),
    "knots": ("rule", spectral.knots, {}),
    "mergevla": ("rule", None, {}),
}
LOOPS = {name: row for name, row in TAKERS.items() if row[1]}
every_rule = pytest.mark.parametrize("rule", RULES)
every_taker = pytest.mark.parametrize("taker", TAKERS)


def on_matrices(rule):
    """The rule applied to whole matrices of the sources in their order, at the module q."""

    def merge(matrices, weights):
        values, names = np.stack(matrices)[:, None], tuple(source.name for source in SOURCES)
        return rule.on(whole(values, np.array(weights), np.array([values.shape[2:]]), names, ("q",)))[0]

    return merge


@every_rule
def test_a_rule_is_a_method_of_its_own(rule):
    """On all entries of ΔW, with room for them all."""
    matrices = [dense(source)["q"] for source in SOURCES]
    wanted = on_matrices(RULES[rule]().rule)(matrices, WEIGHTS)
    assert distance(merged(SOURCES, RULES[rule](rank=24), WEIGHTS), {"q": wanted}) < 1e-9
    assert METHODS[rule] is RULES[rule]


@every_rule
@pytest.mark.parametrize("taker", LOOPS)
def test_a_method_that_takes_rules_makes_of_each_what_its_loop_makes_of_it(taker, rule):
    _, loop, room = LOOPS[taker]
    method = METHODS[taker](rule=rule, rank=room.get("k"))
    wanted = loop(SOURCES, WEIGHTS, rule=on_matrices(method.chosen()), **room)
    assert distance(merged(SOURCES, method, WEIGHTS), wanted) < 1e-6


@every_rule
def test_core_is_the_rule_in_its_core_space(rule):
    same = merged(SOURCES, RULES[rule](space="core"), WEIGHTS)
    assert distance(merged(SOURCES, "core", WEIGHTS, rule=rule), same) == 0


@every_rule
def test_masks_are_made_over_the_merge_by_the_rule(rule):
    """With the options that it has by itself; MergeVLA's own ties sums without a trim."""
    own = {"density": 1.0, "divisor": "none"} if rule == "ties" else {}
    same = merged(SOURCES, RULES[rule](rank=7, **own), WEIGHTS)
    assert distance(merged(SOURCES, "mergevla", WEIGHTS, rule=rule, rank=7), same) == 0


@every_taker
def test_the_names_are_those_of_the_table_everywhere(taker):
    """In validation, on the command line and so in the listing and the docs."""
    name, *_ = TAKERS[taker]
    cls = METHODS[taker]
    (option,) = [option for option in options_of(taker) if option.name == name]
    assert set(option.type.choices) >= set(RULES)
    for choice in option.type.choices:
        assert getattr(cls(**{name: choice}), name) == choice
    with pytest.raises(UsageError, match=f"{name}='mean' is not one of .*{', '.join(map(repr, RULES))}"):
        cls(**{name: "mean"})


@every_rule
@pytest.mark.parametrize("taker", LOOPS)
def test_what_a_rule_does_not_have_is_refused_by_name(taker, rule):
    for name, value in {"density": 0.6, "seed": 3}.items():
        if name in RULES[rule].names():
            assert getattr(METHODS[taker](rule=rule, **{name: value}), name) == value
        else:
            with pytest.raises(UsageError, match=f"rule={rule} has no {name}: leave it out"):
                METHODS[taker](rule=rule, **{name: value})


@every_rule
@pytest.mark.parametrize("taker", LOOPS)
def test_the_options_that_are_handed_on_reach_the_rule(taker, rule):
    """Another density is another merge, and so is another seed."""
    plain = merged(SOURCES, taker, WEIGHTS, rule=rule)
    for name, value in {"density": 0.41, "seed": 3}.items():
        if name in RULES[rule].names():
            assert distance(merged(SOURCES, taker, WEIGHTS, rule=rule, **{name: value}), plain) > 1e-3


@every_rule
def test_a_rule_is_a_plain_frozen_value(rule):
    made = RULES[rule]().rule
    assert replace(made) == made
    with pytest.raises(FrozenInstanceError):
        made.merge = None
