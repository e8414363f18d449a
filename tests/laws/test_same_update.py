"""The same update in other words is the same update: gauges, orders and spellings of a scale."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from loramerge import LowRank, from_state_dict
from loramerge.errors import IncompatibleError
from tests.helpers.adapters import changed, distance, merged
from tests.laws.rows import MERGES, claim, each, every_method, every_pair, merges_for, plain, taken


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
def test_only_the_updates_matter_if_the_method_says_so(method, gauge, chosen):
    declared = method.traits.gauge == "invariant"

    def apart(sources, weights):
        other = [changed(sources[0], gauge), *sources[1:]]
        try:
            return distance(merged(other, method, weights), plain(sources, method, weights))
        except IncompatibleError:  # an A that is shared no longer
            return np.inf

    claim(declared, (apart(*merge) for merge in merges_for(method, declared, chosen)))


@every_method
def test_the_order_of_the_units_in_an_adapter_is_nothing(method, chosen):
    def turned(u):
        return LowRank(u.up[:, ::-1], u.down[::-1], u.scale)

    merges = merges_for(method, True, chosen)
    claim(True, (distance(merged(each(s, turned), method, w), plain(s, method, w)) for s, w in merges))


@every_pair
def test_adapters_and_weights_permuted_together_change_nothing(method, sources, weights):
    sources, weights = taken(method, sources, weights)
    turned = merged(sources[1:] + sources[:1], method, weights[1:] + weights[:1])
    claim(True, [distance(turned, plain(sources, method, weights))])


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


@cache
def twice(sources):
    """The adapters at twice their strength."""
    return tuple(each(sources, lambda u: u * 2.0))


@every_method
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_how_a_config_spells_the_scale_is_nothing(method, encoding):
    sources, weights = taken(method, *MERGES["three of different rank"])
    said = merged([encoded(source, encoding) for source in sources], method, weights)
    claim(True, [distance(said, plain(twice(tuple(sources)), method, weights))])
