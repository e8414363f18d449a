"""Every parameter of every public verb with every wrong type: a sentence, never a bug."""

from __future__ import annotations

import dataclasses
import inspect
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.algorithms import METHODS
from loramerge.request.share import RULES
from loramerge.routing.gates.names import GATES
from tests.fuzz.walk import Outcomes
from tests.helpers.adapters import random_adapters
from tests.helpers.files import folder, tensors
from tests.helpers.models import random_model, save_model

PAIR = random_adapters(0, (2, 2))
WRONG = [
    None,
    True,
    -1,
    3,
    0.5,
    10**400,
    float("nan"),
    "",
    "x",
    b"x",
    [],
    [None],
    ["x"],
    (),
    {},
    {"a": 1},
    {1: 2},
    {1, 2},
    object(),
    object,
    len,
    Path("x"),
    np.ones(2),
    np.float64("inf"),
    PAIR[0],
    PAIR,
    lm.Ties,
    lm.Svd(),
    lm.Ramp(0, 1),
    lm.Rule("q"),
    lm.Effort(),
    lm.Request(),
    iter([]),
]
STATE = {"q.lora_A.weight": np.ones((1, 2)), "q.lora_B.weight": np.ones((2, 1))}
BUNDLE = lm.route(PAIR)
GOOD = {  # what each verb is given where nothing is wrong
    "check": {"source": "a", "consumer": "peft"},
    "combine": {"sources": ["a", "b"]},
    "convert": {"source": "a", "out": "new", "to": "peft"},
    "diff": {"a": "a", "b": "b"},
    "extract": {"tuned": "tuned", "base": "base", "rank": 2},
    "from_state_dict": {"tensors": STATE, "alpha": 1},
    "fuse": {"adapter": "q", "base": "base", "out": "whole"},
    "inspect": {"source": "a"},
    "load": {"source": "a"},
    "load_bundle": {"path": "bundle"},
    "load_router": {"folder": "masked"},
    "report": {"sources": ["a", "b"], "methods": ["svd"]},
    "route": {"sources": ["a", "b"], "gate": "arrow"},
    "save_bundle": {"bundle": BUNDLE, "out": "kept"},
    "only": {"method": lm.Svd(), "match": "q"},
    "open": {"sources": ["a", "b"]},
    "plan": {"sources": ["a", "b"]},
    "plot_spectra": {},
    "push": {"path": "a", "repo_id": "me/x"},
    "replay": {"record": "merged"},
    "resize": {"source": "a", "rank": 1},
    "restore": {"merged": "masked", "task": "a"},
    "save": {"adapter": PAIR[0], "out": "new"},
    "to_state_dict": {"adapter": PAIR[0]},
    "write_deltas": {"todo": lm.plan(PAIR), "out": "new.safetensors"},
}
VERBS = [*GOOD, "Session.combine"]


def function(verb):
    return lm.Session.combine if verb == "Session.combine" else getattr(lm, verb)


def parameters(verb):
    said = inspect.signature(function(verb)).parameters.values()
    return [each.name for each in said if each.kind is not each.VAR_KEYWORD and each.name != "self"]


def advised(verb, call):
    """Call it; a sentence names no argument that it, or a function that the sentence names, does not have."""
    try:
        function(verb)(**call)
    except lm.LoramergeError as error:
        said = re.sub(r"\w+\([^()…]*[)…]", "", str(error))  # values that are shown as they are written
        words = {word for word in re.findall(r"(?<![\w.'\"-])([a-z_]{3,})=", said)} - call.keys()
        known = {word for other in VERBS if re.search(rf"\b{other}\b", said) for word in known_to(other)}
        assert words <= known | known_to(verb), (verb, words, said)
        raise


@cache
def known_to(verb):
    """The arguments of a function, and the options of what it takes by name."""
    named = set(parameters(verb))
    takes = {"method": METHODS, "methods": METHODS, "gate": GATES}
    return (
        named
        | {*RULES}
        | {
            option
            for way in named & takes.keys()
            for each in takes[way].values()
            for option in fields_of(each)
        }
    )


def fields_of(kind):
    return {each.name for each in dataclasses.fields(kind)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What the verbs are called with, made once: no call may harm it."""
    here = tmp_path_factory.mktemp("wrong")
    for seed, name in enumerate("ab"):
        folder(here / name, tensors(seed))
    update = lm.LowRank(np.ones((16, 1)), np.ones((1, 16)))
    lm.save(lm.Adapter.of({"model.layers.0.self_attn.q_proj": update}), here / "q")
    before = random_model()
    save_model(here / "base", before)
    changed = "model.layers.0.self_attn.q_proj.weight"
    save_model(here / "tuned", {**before, changed: before[changed] + 1})
    lm.combine([here / "a", here / "b"], "svd", out=here / "merged")
    lm.route([here / "a", here / "b"], out=here / "bundle")
    lm.combine([here / "a", here / "b"], "mergevla", out=here / "masked")
    return here


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_answers_every_wrong_type_with_a_sentence(verb, place, monkeypatch):
    monkeypatch.chdir(place)
    found, good = Outcomes(), dict(GOOD.get(verb, {}))
    if verb == "Session.combine":
        good = {"self": lm.open(["a", "b"])}
    if verb == "plot_spectra":
        pytest.importorskip("altair")
        good = {"inspection": lm.inspect("a")}
    if verb != "push":  # which needs a Hub
        function(verb)(**good, **({"overwrite": True} if "out" in good else {}))
    for name in parameters(verb):
        for value in WRONG:
            if name == "out" and isinstance(value, str | Path):
                continue  # these are right
            call = {"overwrite": True, **good, name: value} if "out" in good else {**good, name: value}
            found.of(lambda call=call: advised(verb, call), (verb, name, value))
    found.check()


def test_every_verb_is_walked():
    verbs = {name for name in [*lm.__all__, "open"] if inspect.isfunction(getattr(lm, name))}
    assert verbs == set(GOOD)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_answers_every_wrong_option_with_a_sentence(name):
    found = Outcomes()
    for option in METHODS[name].names():
        for value in WRONG:
            found.of(lambda o=option, v=value: METHODS[name](**{o: v}), (name, option, value))
    assert not found.bugs, found.bugs
