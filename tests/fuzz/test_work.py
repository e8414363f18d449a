"""Every number that a record or a recipe may hold, as large as can be: bounded, announced or refused."""

import json
import sys
import threading
import typing
from contextlib import contextmanager

import pytest

import loramerge as lm
from loramerge.algorithms import METHODS
from loramerge.request.strangers import TENFOLD
from tests.fuzz.walk import Outcomes, paths, put
from tests.helpers.files import Cli, bare, folder, key, tensors

HUGE = [10**12, 2**62, 10**19, 10**400, 1e12, 1e30, 1e308, float("inf")]
ODD = [-1, 0, -(2**62), -1e308, 5e-324, float("nan"), True, "1" * 400, [10**12], {"from": 10**12, "to": 1}]
FEW = [10**12, 10**19, 1e308, 10**400, -1, float("nan")]
MANY = pytest.mark.parametrize(
    "values", [FEW, pytest.param([*HUGE, *ODD], marks=pytest.mark.slow)], ids=["few", "all"]
)
SPARE = 50_000  # calls: of what is read and looked up once


class TooMuch(BaseException):
    """More work than there may be."""


@contextmanager
def counted(most=None):
    """Counts the calls of functions, in all threads, and ends the work where there are too many."""
    count = [0]

    def seen(frame, event, arg):
        count[0] += event == "call"
        if most is not None and count[0] > most:
            sys.setprofile(None)
            raise TooMuch(f"over {most} calls")

    threading.setprofile(seen)
    sys.setprofile(seen)
    try:
        yield count
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


@pytest.fixture(autouse=True)
def sources(tmp_path, monkeypatch):
    """Two adapters that every method takes: of equal ranks, with one lora_A."""
    monkeypatch.chdir(tmp_path)
    shared = {name: array for name, array in tensors(0).items() if "lora_A" in name}
    assert key("layers.0.q", "A") in shared
    for seed, name in enumerate("ab"):
        folder(tmp_path / name, {**tensors(seed), **shared})
    bare(tmp_path / "c.safetensors", tensors(2))  # which does not say its alpha


@pytest.fixture
def cli(capsys):
    return Cli(capsys)


def numbers(kind):
    """The options of a method that may be a number."""
    hints = typing.get_type_hints(kind)
    return [name for name in kind.names() if {int, float} & {hints[name], *typing.get_args(hints[name])}]


def places_of(table):
    """Where a number stands, or may stand."""
    for place in paths(table):
        value = table
        for step in place:
            value = value[step]
        if value is None or isinstance(value, int | float):
            yield place


def walk(record, places, values, most, found):
    """Replay the record with every value in every place, by no more calls than that."""

    def act():
        try:
            with counted(most):
                lm.replay("r.json", threads=1)
        except TooMuch as error:
            raise AssertionError("endless") from error

    for place in places:
        for value in values:
            with open("r.json", "w", encoding="utf-8") as file:
                json.dump(put(record, place, value), file)
            found.of(act, (place, value))


def recorded(method, **more):
    """The record of a merge, and the calls that repeating it takes."""
    lm.combine(["a", "b"], method, out="m", threads=1, **more)
    with open("m/loramerge.json", encoding="utf-8") as file:
        record = json.load(file)
    record.pop("report", None)
    with open("r.json", "w", encoding="utf-8") as file:
        json.dump(record, file)
    with counted() as count:
        lm.replay("r.json", threads=1)
    return record, count[0]


@MANY
@pytest.mark.parametrize("name", METHODS)
def test_the_options_of_a_method_in_a_record(name, values):
    found, (record, calls) = Outcomes(), recorded(name, weights=[1, 1])
    places = [("method", "options", option) for option in numbers(METHODS[name])]
    walk(record, places, values, 2 * TENFOLD * calls + SPARE, found)
    assert not found.bugs, found.bugs


@MANY
def test_the_settings_of_a_record(values):
    rules = [lm.Rule("q", rank=1, weights=[1, 2])]
    weights = [lm.Ramp(0.5, 1), 1]
    record, calls = recorded("svd", rules=rules, weights=weights, energy_per_module=0.9, scale=0.5)
    places, found = list(places_of(record)), Outcomes()
    walk(record, places, values, 2 * TENFOLD * calls + SPARE, found)
    found.check()


RECIPE = {
    "sources": [
        {"source": "a", "weight": 0.5},
        {"source": "b", "weight": {"from": 0.5, "to": 1}},
        "c.safetensors",
    ],
    "method": "lego",
    "parameters": {"rank": 2, "restarts": 2, "seed": 1},
    "modules": [{"match": "q", "weights": [1, 2, 1], "rank": 1}],
    "alpha": {"c.safetensors": 1},
    "profile": "compact",
    "for": "vllm",
    "allow_unknown": True,
    "max_rank": 8,
    "scale": 0.5,
    "max_error": 0.5,
    "max_lost": 0.9,
    "min_cosine": 0.01,
    "drop_below": 0.01,
}
BUDGETS = {"total_rank": 8, "size": 4000, "energy_per_module": 0.9}


def followed(cli, recipe, most=None):
    """The calls that a recipe takes; what it answers is no bug."""
    with open("r.yaml", "w", encoding="utf-8") as file:
        file.write(json.dumps(recipe))
    try:
        with counted(most) as count:
            cli("combine", "--recipe", "r.yaml", "-o", "out", "--overwrite", "--threads", 1)
    except TooMuch as error:
        raise AssertionError("endless") from error
    assert cli.code in (0, 1, 2, 3, 4), cli.err
    return count[0]


@MANY
@pytest.mark.parametrize("budget", [None, *BUDGETS])
def test_a_recipe(cli, values, budget):
    recipe = (
        RECIPE if budget is None else {**RECIPE, "method": "svd", "parameters": {}, budget: BUDGETS[budget]}
    )
    calls, found = followed(cli, recipe), Outcomes()
    assert cli.code in (0, 4), cli.err
    places = list(places_of(recipe)) if budget is None else [(budget,)]
    for place in places:
        for value in values:
            asked = put(recipe, place, value)
            found.of(lambda asked=asked: followed(cli, asked, 2 * TENFOLD * calls + SPARE), (place, value))
    assert not found.bugs, found.bugs


def test_the_count_ends_what_has_no_end():
    endless = (json.loads(each) for each in iter(lambda: "1", "2"))
    with counted(1000), pytest.raises(TooMuch):
        list(endless)


def test_a_number_that_python_cannot_write_is_refused_in_a_sentence(cli):
    endless = 1 << 20_000
    for name in ("total_rank", "max_rank", "size", "threads", "memory", "max_error", "scale", "drop_below"):
        with pytest.raises(lm.UsageError, match=f"^{name}=a number of thousands of digits"):
            lm.Request(**{name: endless})
    for name in METHODS:
        for option in numbers(METHODS[name]):
            with pytest.raises(lm.UsageError, match=f"^{option} is above"):
                METHODS[name](**{option: endless})
    with open("r.yaml", "w", encoding="utf-8") as file:
        file.write(f"sources: [a, b]\nparameters: {{rank: {endless:#x}}}\n")
    cli("combine", "--recipe", "r.yaml").refused(1, "r.yaml is not valid YAML: a number in it is too large")
