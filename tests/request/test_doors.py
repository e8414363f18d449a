"""Every field of a request is taken at every door, or the door says why not: a new field enters by itself."""

import ast
import inspect
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest

import loramerge as lm
from loramerge.cli import COMMANDS, loramerge
from loramerge.errors import UsageError
from loramerge.merge.session import Session
from loramerge.request import request as written_by
from loramerge.request.doors import DOORS, TOLD, why_not
from loramerge.request.entry import taken
from loramerge.request.recipe import Ingredient, Recipe
from loramerge.request.recipe_text import parse, unsaid, written
from loramerge.request.record import BY_SOURCE, Record, SourceRecord, kept
from loramerge.request.record import parse as parse_record
from loramerge.request.request import FIELDS, PLAIN, Request
from tests.helpers.adapters import random_adapters

EXAMPLES = {  # a value of each field that is not its default, and what is kept of it
    "weights": ([0.5, lm.Ramp(1, 2)], (0.5, lm.Ramp(1.0, 2.0))),
    "rules": ([lm.Rule("q", rank=1)], (lm.Rule("q", rank=1),)),
    "only": ("q", "q"),
    "exclude": ("v", "v"),
    "blocks": ({"a": "IN04=0.5", "b": "double 3-7"}, None),
    "row": ("ann", "ann"),
    "alpha": ({"a": 3, "b": "rank"}, {"a": 3.0, "b": "rank"}),
    "allow_base_mismatch": (True, True),
    "allow_disjoint": (True, True),
    "rename": ({"model": "m"}, {"model": "m"}),
    "grain": ("fused-experts", "fused-experts"),
    "extras": ("average", "average"),
    "heads_as_lora": ("base", "base"),
    "renormalise": (True, True),
    "initial": ({"a": "start"}, {"a": "start"}),
    "base": ("org/base", "org/base"),
    "prompt_gate": ("gate.npz", "gate.npz"),
    "names": ({"down": "a", "up": "b"}, {"down": "a", "up": "b"}),
    "project_out": ("safety", "safety"),
    "drop_below": (0.5, 0.5),
    "allow_pickle": (True, True),
    "format": ("kohya", "kohya"),
    "descriptions": ({"a": "sorts"}, {"a": "sorts"}),
    "embedding": ("vectors.json", "vectors.json"),
    "keep_form": (True, True),
    "dtype": ("bfloat16", "bfloat16"),
    "profile": ("compact", "compact"),
    "total_rank": (7, 7),
    "size": ("2kB", "2kB"),
    "energy_per_module": ("sv_ratio=20", "sv_ratio=20"),
    "consumer": ("peft", "peft"),
    "max_rank": (8, 8),
    "allow_unknown": (True, True),
    "scale": ("norm", "norm"),
    "max_error": (0.5, 0.5),
    "max_lost": (0.5, 0.5),
    "min_cosine": (0.5, 0.5),
    "out": ("m", Path("m")),
    "bare": (True, True),
    "overwrite": (True, True),
    "threads": (2, 2),
    "memory": ("1MB", "1MB"),
    "device": ("auto", "auto"),
    "allow_work": (True, True),
    "progress": (lambda stage, done, total: done, None),
}
WRONG = {  # a value of another type, for every field
    **dict.fromkeys(FIELDS, object()),
    "weights": 1,
    "rules": ["x"],
    "only": b"q",
    "scale": "strong",
    "memory": "much",
    "size": 0,
    "threads": True,
}
FUNCTIONS = {
    "load": lm.load,
    "diff": lm.diff,
    "combine": lm.combine,
    "plan": lm.plan,
    "open": lm.open,
    "session": Session.combine,
    "report": lm.report,
    "resize": lm.resize,
    "convert": lm.convert,
    "extract": lm.extract,
    "fuse": lm.fuse,
    "restore": lm.restore,
    "replay": lm.replay,
    "route": lm.route,
}
COMMAND_OF = {"command": "combine"} | {
    d: d for d in ("resize", "convert", "extract", "fuse", "restore", "replay", "route", "report")
}
ARGUMENTS = {("convert", "out"), ("extract", "base"), ("fuse", "base")}  # given by their place
by_field = pytest.mark.parametrize("name", FIELDS)
every_door = pytest.mark.parametrize("door", DOORS)


def asked(name):
    return Request(**{name: EXAMPLES[name][0]})


def test_every_field_has_an_example_and_every_reason_a_field():
    assert EXAMPLES.keys() == FIELDS.keys()
    parts = {field.part for field in FIELDS.values()}
    assert {name for absent in DOORS.values() for name in absent} <= FIELDS.keys() | parts


def test_every_field_is_read_by_the_package():
    """An option that nothing reads does nothing."""
    here = Path(written_by.__file__)
    trees = [
        ast.parse(path.read_text(encoding="utf-8")) for path in here.parents[1].rglob("*.py") if path != here
    ]
    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert FIELDS.keys() - read == set()


@pytest.mark.parametrize(("door", "name"), TOLD)
def test_what_help_says_of_a_field_at_a_door_is_said_there(door, name):
    told = TOLD[door, name]
    command = loramerge.get_command(click.Context(loramerge), COMMAND_OF[door])
    (option,) = (each for each in command.params if each.name == FIELDS[name].name)
    assert name in taken(door)
    assert option.help.startswith(told.help)
    assert set(told.words) <= set(FIELDS[name].kind.words() if told.words else ())
    assert not told.words or tuple(option.type.choices) == told.words


@by_field
def test_a_value_that_fits_is_kept_and_one_that_does_not_is_a_sentence(name):
    given, wanted = EXAMPLES[name]
    request = asked(name)
    assert getattr(request, name) == (given if wanted is None else wanted)
    assert [field.name for field, _ in request.given()] == [name]
    assert replace(request) == request, "what is kept fits again"
    with pytest.raises(UsageError, match=rf"^{name}="):
        Request(**{name: WRONG[name]})


@by_field
@pytest.mark.parametrize("door", FUNCTIONS)
def test_a_function_takes_a_field_or_says_why_not(door, name):
    function, why = FUNCTIONS[door], why_not(door, name, FIELDS[name].part)
    here = inspect.signature(function).parameters
    assert (name in here) == (why is None) or (door, name) in ARGUMENTS
    if why is None or name in here:
        return
    with pytest.raises(UsageError) as caught:
        enter(door, **{name: EXAMPLES[name][0]})
    assert str(caught.value) == f"{name} is not for {door}: {why}."
    assert 10 < len(why) < 110


def enter(door, *method, **said):
    """Say something at a door, in Python."""
    pair = random_adapters(0, (2, 2))
    second = {"diff": pair[1], "extract": "base", "fuse": "base", "restore": "t"}
    few = {"convert": ("b", "peft"), **{door: (value,) for door, value in second.items()}}
    if door == "session":
        return Session(lm.open(pair).sources).combine(*method, **said)
    one = "x" if door in ("restore", "replay", "extract") else pair[0]
    first = (pair,) if door in ("combine", "plan", "open", "route", "report") else (one, *few.get(door, ()))
    return FUNCTIONS[door](*first, *method, **said)


@by_field
@pytest.mark.parametrize("door", COMMAND_OF)
def test_a_command_has_an_option_for_a_field_or_says_why_not(door, name):
    command = loramerge.get_command(click.Context(loramerge), COMMAND_OF[door])
    spelt = {"weights": {"-w", "--weights"}, "descriptions": {"--description", "--descriptions"}}
    words = spelt.get(name, {f"--{FIELDS[name].option.replace('_', '-')}"})
    words = {
        word for param in command.params for word in param.opts if isinstance(param, click.Option)
    } & words
    only_in_python = name == "progress"  # the command line shows it by itself
    assert bool(words) == (name in taken(door) and not only_in_python)
    assert COMMAND_OF[door] in COMMANDS


@by_field
def test_a_recipe_keeps_a_field_or_says_that_it_does_not(name):
    sources = (Ingredient("a"), Ingredient("b"))
    request = PLAIN if name == "weights" else asked(name)
    recipe = Recipe(sources, "svd", {"rank": 2}, request)
    import yaml

    again = parse(yaml.safe_load(written(recipe)), "recipe.yaml")
    here = name in taken("recipe")
    assert unsaid(recipe) == ([] if here else [name])
    assert again == (recipe if here else replace(recipe, request=PLAIN))


@by_field
def test_a_record_keeps_a_field_or_says_why_not(name):
    marks = {"f": "0" * 64}
    request = asked(name)
    weights = request.weights or (1.0, 1.0)
    rows = tuple(SourceRecord(n, None, marks, w, None, None) for n, w in zip("ab", weights, strict=True))
    said = Record(rows, "svd", {"rank": 2}, request).to_dict()
    found = parse_record(said, "record").request
    if name in BY_SOURCE:
        assert name in taken("record")
    else:
        assert (name in {field.name for field in kept()}) == (name in taken("record"))
        assert getattr(found, name) == (getattr(request if name in taken("record") else PLAIN, name))
    assert found.weights == weights


def test_what_is_asked_reaches_the_plan():
    plan = lm.plan(random_adapters(0, (2, 2)), "svd", threads=2, memory="1MB", scale="norm", only="q")
    assert (plan.request.threads, plan.request.memory, plan.scale) == (2, "1MB", "norm")
    assert plan.request.effort == lm.Effort(2, 1e6)
    assert lm.plan(random_adapters(0, (2,)), effort=lm.Effort(3, 5e6)).request.effort == lm.Effort(3, 5e6)


def test_numbers_of_any_library_are_weights():
    made = Request(weights=np.array([0.5, 1.5], np.float32))
    assert made.weights == (0.5, 1.5)
    assert all(type(weight) is float for weight in made.weights)


@pytest.mark.parametrize(
    ("door", "said", "words"),
    [
        ("combine", {"overwritte": True}, "overwritte is neither a setting of combine nor an option of svd."),
        ("combine", {"overwritte": True}, "Did you mean overwrite?"),
        ("combine", {"rnak": 2}, "Did you mean rank"),
        ("combine", {"density": 0.5}, "density is an option of"),
        ("combine", {"ranks": {}}, "ranks is neither"),
        ("combine", {"left_out": {}}, "left_out is neither"),
        ("combine", {"effort": lm.Effort()}, "effort is neither"),
        ("session", {"fold": True}, "fold is neither"),
        ("session", {"threads": 2}, "threads is not for session: sources are chosen when they are opened"),
        ("open", {"rank": 2}, "rank is not a setting of open"),
        ("resize", {"initail": {}}, "Did you mean initial?"),
    ],
)  # fmt: skip
def test_a_name_that_a_door_does_not_know_is_answered_with_those_that_are_near(door, said, words):
    with pytest.raises(UsageError) as caught:
        enter(door, *(["svd"] if door in ("combine", "session") else []), **said)
    assert words in str(caught.value)
