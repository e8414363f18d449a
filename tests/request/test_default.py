"""Where nobody names a method: which one it is, that all doors agree on it, and that it is said."""

import inspect
import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import UsageError, speaking
from loramerge.merge.session import Session
from loramerge.request.default import DEFAULT, SUM, SUMMING, default
from loramerge.request.doors import MERGING
from loramerge.request.recipe import Ingredient, Recipe
from loramerge.request.recipe_text import parse, read, written
from loramerge.request.request import FIELDS, PLAIN, Request
from tests.helpers.adapters import dense, distance, random_adapters
from tests.helpers.files import Cli, folder, tensors

SOURCES = random_adapters(0, (2, 3, 2))
ASKED = {  # what is asked for -> the method
    "nothing": ({}, "level"),
    "a size": ({"rank": 2}, "level"),
    "a budget": ({"total_rank": 4}, "level"),
    "a strength of the whole": ({"scale": 0.5}, "level"),
    "a rank by rule": ({"rules": [lm.Rule("q", rank=1)]}, "level"),
    "an option of level": ({"fade": 0}, "level"),
    "weights": ({"weights": [1, 1, 1]}, "linear"),
    "weights by rule": ({"rules": [lm.Rule("q", weights=(1, 1, 0))]}, "linear"),
    "a gate on the sum": ({"max_lost": 0.5}, "linear"),
    "shares of a sum": ({"renormalise": True}, "linear"),
}
asked_for = pytest.mark.parametrize(("asked", "method"), ASKED.values(), ids=ASKED)


def same(one, other):
    return distance(dense(one.adapter), dense(other.adapter)) == 0


@asked_for
def test_what_is_asked_decides_and_the_merge_is_that_of_the_method_by_its_name(asked, method):
    merge = lm.combine(SOURCES, **asked)
    assert same(merge, lm.combine(SOURCES, method, **asked))
    assert merge.plan.default.name == method
    assert f"method {method} (the default" in str(merge.report)
    assert f"by {method} (the default" in repr(merge)


@asked_for
def test_the_doors_agree(asked, method):
    limits = {"max_lost"} & asked.keys()  # which they leave to `save`
    if not limits:
        assert lm.plan(SOURCES, **asked).default.name == method
    if not limits and not {"rules", "renormalise"} & asked.keys():
        merge = lm.open(SOURCES).combine(**asked)
        assert merge.plan.default.name == method
        assert f"method {method} (the default" in str(merge.report)
    options = {name: value for name, value in asked.items() if name not in FIELDS}
    fields = {name: value for name, value in asked.items() if name in FIELDS}
    recipe = Recipe(tuple(map(Ingredient, "abc")), None, options, Request(**fields))
    assert recipe.named()[0].method == method


def test_a_method_that_is_named_is_no_default():
    for merge in (lm.combine(SOURCES, DEFAULT), lm.combine(SOURCES, lm.Level()), lm.combine(SOURCES, SUM)):
        assert merge.plan.default is None
        assert "default" not in str(merge.report)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_about_a_sum_or_of_any_merge(name):
    """A field whose value is as usual decides nothing; `SUMMING` holds fields."""
    assert default(PLAIN, 2).name == DEFAULT
    assert default(Request(**{name: FIELDS[name].default}), 2).name == DEFAULT
    assert set(SUMMING) <= FIELDS.keys()


@pytest.mark.parametrize("asked", [{}, {"scale": 0.5}, {"weights": [2]}], ids=str)
def test_one_source_comes_back(asked):
    merge = lm.combine(SOURCES[:1], **asked)
    assert isinstance(merge.method, lm.Linear)
    assert same(merge, lm.combine(SOURCES[:1], "linear", **asked))
    assert "default" not in str(merge.report), "there is nothing to choose"


def test_a_mapping_gives_weights(tmp_path):
    paths = {folder(tmp_path / n, tensors(i)): 1 for i, n in enumerate("ab")}
    assert isinstance(lm.combine(paths).method, lm.Linear)
    assert isinstance(lm.combine(list(paths)).method, lm.Level)


@pytest.mark.parametrize("door", [lm.combine, lm.plan, lambda sources, **a: lm.open(sources).combine(**a)])
def test_an_option_of_level_beside_weights_is_refused_with_the_remedy(door):
    with pytest.raises(
        UsageError, match=r"^fade is an option of level, and without a method this is linear "
    ):
        door(SOURCES, weights=[1, 1, 1], fade=0.1)
    assert isinstance(lm.combine(SOURCES, "level", weights=[1, 1, 1], fade=0.1).method, lm.Level)
    with pytest.raises(UsageError, match="say method='level'"):
        door(SOURCES[:1], fade=0.1)


def test_a_recipe_without_a_method_is_of_before_and_means_the_sum(tmp_path):
    sources = [str(folder(tmp_path / n, tensors(i))) for i, n in enumerate("ab")]
    recipe = parse({"sources": sources}, "it")
    assert recipe.method == SUM
    assert recipe.named() == (recipe, None)
    (tmp_path / "r.yaml").write_text(written(Recipe(tuple(map(Ingredient, sources)))))
    assert read(tmp_path / "r.yaml").method == DEFAULT, "one that is written says which"


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate("ab"):
        folder(tmp_path / name, tensors(i))
    (tmp_path / "r.yaml").write_text("sources: [a, b]\n")
    (tmp_path / "list.txt").write_text("a 1\nb 1\n")
    return Cli(capsys)


COMMANDS = {
    "a b": "level",
    "a b --fade 0": "level",
    "a b --rank 2": "level",
    "a b --scale norm": "level",
    "a b --weights 1,1": "linear",
    "a b -w 1 -w 1": "linear",
    "@list.txt": "linear",
    "--recipe r.yaml": "linear",
    "a b --recipe r.yaml": "linear",
    "a b --keep-form": "linear",
    "a b --max-lost 0.9": "linear",
    "a": "linear",
}


@pytest.mark.parametrize(("words", "method"), COMMANDS.items())
def test_the_command_says_which_it_is_and_so_does_its_recipe(cli, words, method):
    assert cli("combine", *words.split(), "--print-recipe").code == 0
    assert f"\nmethod: {method}\n" in cli.out
    if "--keep-form" in words:  # which these sources do not have
        return
    assert cli("combine", *words.split(), "--dry-run").code == 0
    named = f"{method}," if "r.yaml" in words else f"{method} (the default"
    assert f"would write merged: {named}" in cli.out.replace("\n", " ")


def test_the_command_the_record_and_json_say_that_it_was_the_default(cli, tmp_path):
    assert cli("combine", "a", "b", "-o", "m").code == 0
    assert "method level (the default; --method linear sums), 0." in cli.out
    assert "wrote m: level (the default; --method linear sums), " in cli.err
    record = json.loads((tmp_path / "m" / "loramerge.json").read_text())
    assert record["method"]["name"] == "level"
    assert record["method"]["default"] is True
    assert cli("combine", "a", "b", "--json", "-o", "n").code == 0
    assert json.loads(cli.out)["method"]["default"] is True
    assert cli("combine", "a", "b", "--method", "level", "--json", "-o", "o").code == 0
    assert json.loads(cli.out)["method"]["default"] is False
    assert "default" not in json.loads((tmp_path / "o" / "loramerge.json").read_text())["method"]
    assert (tmp_path / "m" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "o" / "adapter_model.safetensors"
    ).read_bytes()
    lm.replay("m", "again")
    assert json.loads((tmp_path / "again" / "loramerge.json").read_text()) == record


def test_an_option_is_refused_in_words_of_the_shell(cli):
    assert cli("combine", "a", "b", "--fade", "0.1", "--weights", "1,1").code == 2
    assert "--fade is an option of level" in cli.err
    assert "say --method level" in cli.err
    with speaking("shell"):
        assert default(Request(weights=[1, 2]), 2).told == "the default with weights"
        assert default(Request(max_lost=0.1), 2).told == "the default with --max-lost"


def turned(adapter, share=1.0):
    """The opposite of an adapter."""
    return lm.combine([adapter], weights=[-share]).adapter


def test_sources_that_cancel_are_told():
    a, b = SOURCES[0], SOURCES[2]
    nothing = lm.combine([a, turned(a)]).report
    assert "cancel each other in every module, so that nothing is left" in str(nothing)
    assert nothing.cancelling in nothing.to_dict()["notes"]
    rest = lm.combine([a, turned(a, 1 - 1e-8)], "tsv").report
    assert 0 < rest.modules[0].merged < 1e-9 * rest.modules[0].squares.sum()
    assert "so that nothing is left" in str(rest), "not full strength"
    assert "linear" not in rest.cancelling
    faint = lm.combine([turned(a), b], weights=[1, 0.1]).adapter
    raised = lm.combine([a, faint]).report
    assert "full strength was given to what is left" in str(raised)
    assert lm.combine([a, faint], "linear").report.cancelling is None, "a sum is as faint as it ought to be"
    for scale in ("norm", 3.0):
        said = lm.combine([a, faint], "linear", scale=scale).report.cancelling
        assert "the scale raised what is left: leave one of them out, or the scale" in said
    assert lm.combine(SOURCES).report.cancelling is None


def test_modules_that_cancel_are_counted():
    """`q` of the second is the opposite of `q` of the first; `v` is another."""
    unit, other = (lm.LowRank(np.eye(2, 1, -i), np.eye(1, 2, i)) for i in (0, 1))
    one = lm.Adapter.of({"q": unit, "v": unit})
    assert "cancel each other in 1 module," in str(
        lm.combine([one, lm.Adapter.of({"q": -1.0 * unit, "v": other})])
    )


def test_a_session_that_is_opened_again_and_again_does_not_remember_a_default():
    session = Session(lm.open(SOURCES).sources)
    assert [type(session.combine(weights=w).method) for w in (None, [1, 2, 3], None)] == [
        lm.Level,
        lm.Linear,
        lm.Level,
    ]


def test_no_function_names_a_method_by_itself():
    from tests.request.test_doors import FUNCTIONS

    for door in MERGING:
        assert inspect.signature(FUNCTIONS[door]).parameters["method"].default is None
