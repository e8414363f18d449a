"""What callers give by mistake: never taken for something else, always answered in a sentence."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge import errors
from loramerge.cli.options import asks
from loramerge.request.request import FIELDS
from tests.helpers.adapters import random_adapters
from tests.helpers.files import folder, tensors

A, B = random_adapters(0, (2, 3))
NAMES = [str(target) for target in A]


def test_a_mapping_of_sources_gives_their_weights():
    assert lm.combine({A: 1, B: 5}).report.weights == (1.0, 5.0)
    assert lm.plan({A: 0.5, B: lm.Ramp(0, 1)}).schedule.weights == (0.5, lm.Ramp(0, 1))


WRONG = {
    "weights twice": (lambda: lm.combine({A: 1, B: 5}, weights=[1, 2]), "stand in the mapping already"),
    "weights too early": (lambda: lm.open({A: 1}), "weights is not for open"),
    "a set": (lambda: lm.combine({A, B}), "A set has no order"),
    "one source": (lambda: lm.combine(A), r"even if it is only one: \[source\]"),
    "nothing": (lambda: lm.combine(None), "Give a list of adapters"),
    "no source": (lambda: lm.combine([A, 3]), "3 is not a source"),
    "an empty name": (lambda: lm.combine([A, ""]), "'' is not a source"),
    "weights": (lambda: lm.combine([A], weights=1), "weights=1 must be a list"),
    "rules": (lambda: lm.combine([A], rules=["x"]), "has 'x', which is not a Rule"),
    "a class": (lambda: lm.combine([A], lm.Ties), r"is the class of a method: give Ties\(\) or 'ties'"),
    "no method": (lambda: lm.combine([A], 3), "neither the name of a method nor a method"),
    "an empty method": (lambda: lm.combine([A], ""), "There is no method ''"),
    "an empty option": (lambda: lm.combine([A], "sg", describe=""), "describe is empty"),
    "a rule for nothing": (
        lambda: lm.combine([A], "svd", rules=[lm.Rule("zz", rank=1)]),
        f"The rule for 'zz' fits no module; a module here is called {NAMES[0]}",
    ),
    "load a number": (lambda: lm.load(3), "3 is not an adapter"),
    "load nothing": (lambda: lm.load(""), "An adapter without a name"),
    "compare numbers": (lambda: lm.diff(1, 2), "1 is not an adapter"),
    "inspect a list": (lambda: lm.inspect([A]), "is not an adapter"),
    "check a number": (lambda: lm.check(1, "vllm"), "1 is not an adapter"),
    "save a path": (lambda: lm.save("a", "b"), r"not a str: give lm.load\(path\)"),
    "save a merge": (lambda: lm.save(lm.combine([A]), "b"), "not a Merge: give the `adapter` of a merge"),
    "save nowhere": (lambda: lm.save(A, 3), "out=3 is not a path"),
    "an adapter of numbers": (lambda: lm.Adapter.of({"q": 3}), r"made of \{module: LowRank"),
}


@pytest.mark.parametrize(("call", "words"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_meant_is_refused_by_name(call, words):
    with pytest.raises(lm.UsageError, match=words):
        call()


def test_an_adapter_gives_its_updates_by_name_too():
    name = NAMES[0]
    assert name in A
    assert "zz" not in A
    np.testing.assert_array_equal(A[name].dense(), next(iter(A.values())).dense())
    with pytest.raises(KeyError, match=f"Did you mean {name}"):
        A[name.rpartition(".")[2]]


EMPTY = [
    ("combine", "a", "--method", ""),
    ("combine", "a", "--method="),
    ("combine", "a", ""),
    ("combine", "a", "--out", ""),
    ("combine", "a", "--only="),
    ("combine", "a", "--push", ""),
    ("combine", "a", "--hub-filter", ""),
    ("combine", "a", "--spread", ""),
    ("inspect", ""),
    ("check", "a", "--for", ""),
]


@pytest.mark.parametrize("command", EMPTY, ids=" ".join)
def test_an_empty_word_is_a_usage_error_in_every_command(cli, tmp_path, command):
    folder(tmp_path / "a", tensors(1))
    cli(*command).refused(2, "give it")


@pytest.mark.parametrize("name", sorted(FIELDS.keys() - {"weights", "bare", "rules", "progress"}))
def test_the_shell_hears_of_a_setting_as_its_option(name):
    def command():
        pass

    asks("command", name)(command)
    options = {word for param in command.__click_params__ for word in param.opts}
    with errors.speaking("shell"):
        assert errors.say(name) in options
    assert errors.say(name) == f"{name}="


def test_errors_speak_the_language_of_their_caller(cli, tmp_path):
    folder(tmp_path / "a", tensors(1))
    (tmp_path / "m.safetensors").write_text("mine")
    with pytest.raises(lm.OutputError, match="another out=, or replace it with overwrite=True"):
        lm.combine([A], out=tmp_path / "m.safetensors")
    cli("combine", "a", "-o", "m.safetensors").refused(1, "another -o, or replace it with --overwrite")
    with pytest.raises(lm.UsageError, match="left by only= and exclude="):
        lm.combine([A], only="zz")


UNFIT = {  # words -> how the sentence begins
    ("--weights", "nan,1"): "--weights nan,1.0 has the weight nan, which is not a finite number.",
    ("--weights", "1e308,1"): "--weights 1e+308,1.0 has the weight 1e+308, which must be 0, or from 1e-30 ",
    ("--alpha", "a=1e300"): "--alpha a=1e+300 is neither a number",
    ("--max-lost", "1e308"): "--max-lost 1e+308 must be at most 1e+300 in size.",
}


@pytest.mark.parametrize(("words", "said"), UNFIT.items(), ids=" ".join)
def test_a_value_that_does_not_fit_is_shown_as_it_was_typed(cli, tmp_path, words, said):
    for name in "ab":
        folder(tmp_path / name, tensors(1))
    cli("combine", "a", "b", *words).refused(2, said)


@pytest.mark.parametrize("verb", [lm.combine, lm.plan, lm.open, lm.route])
def test_leaving_out_what_is_not_there_is_refused(verb):
    with pytest.raises(lm.UsageError, match=r"exclude='zz' matches no module; one here is called"):
        verb([A], exclude="zz")


def test_leaving_out_what_is_not_there_is_refused_of_one_adapter(tmp_path):
    for verb in (
        lambda **more: lm.resize(A, rank=1, **more),
        lambda **more: lm.convert(A, tmp_path / "o", "peft", **more),
    ):
        with pytest.raises(lm.UsageError, match=r"exclude='zz' matches no module"):
            verb(exclude="zz")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"
HEADS = {
    "pointer.safetensors": (POINTER, "pointer of Git LFS"),
    "pointer.bin": (POINTER, "pointer of Git LFS"),
    "page.safetensors": (b"\n<!DOCTYPE html><html><body>Log in</body></html>", "is a web page"),
    "page2.safetensors": (b"<html lang=en></html>", "is a web page"),
}


@pytest.mark.parametrize("name", HEADS)
def test_what_was_downloaded_in_place_of_the_file_is_recognised(tmp_path, name):
    content, words = HEADS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(lm.SourceError, match=words):
        lm.load(tmp_path / name, allow_pickle=True)


def test_a_mistyped_path_is_answered_with_those_that_are_near(tmp_path):
    folder(tmp_path / "my-adapter", tensors(1))
    with pytest.raises(lm.SourceError, match=r"Did you mean .*my-adapter"):
        lm.load(tmp_path / "my-adaptr")
    with pytest.raises(lm.SourceError, match=r"Did you mean .*my-adapter"):
        lm.load(tmp_path / "my-adaptr" / "x.safetensors")
    with pytest.raises(lm.SourceError, match="Check the path"):
        lm.load(tmp_path / "quite-another")


COMMANDS = (  # they tell commands, of ours and of others, to be pasted into a shell
    "consumers",
    "hub/card.py",
    "hub/usage.py",
    "hub/lists.py",  # a filter is an option of the shell only
    "merge/plan.py",  # an option of vLLM
    "request/doors.py",  # a recipe is for the shell
    "request/peft_call.py",  # how a call of PEFT reads here, in Python and in a shell
    "sources/expand.py",  # a recipe is for the shell
    "request/record.py",
    "errors.py",
    "cli",
    "verbs/push.py",  # a card tells how to fetch
    "pages",  # each picture has the command that makes it
)
ROOMS = Path(lm.__file__).parent


def sentences():
    """(place, text) of every string of the package that is no docstring."""
    for path in ROOMS.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.FunctionDef | ast.ClassDef)]
        told = {id(n.body[0].value) for n in defined if n.body and isinstance(n.body[0], ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
                yield str(path.relative_to(ROOMS)), node.value


def test_no_sentence_types_an_option_by_hand():
    """`errors.say` does, in the language of whoever asks."""
    typed = [
        (place, word)
        for place, text in sentences()
        if not place.startswith(COMMANDS)
        for word in re.findall(r"(?<![\w-])--[a-z][\w-]+", text)
    ]
    commands = {
        ("algorithms/names.py", "--concat"),  # of a script of kohya
        ("checkpoints/changes.py", "--extras"),  # `loramerge convert --extras drop`
        ("formats/bundles.py", "--gate"),  # `loramerge route`, as a whole command
        *(("formats/routers.py", option) for option in ("--allow-pickle", "--alpha")),  # likewise
        *(
            ("hub/choice.py", option) for option in ("--local-dir", "--include", "--revision")
        ),  # `hf download`
        ("checkpoints/alike.py", "--rename"),  # `loramerge convert`, as a whole command
        ("routing/readme.py", "--row"),  # a README tells how to merge
        *(("sources/failures.py", option) for option in ("--method", "--keep-form")),  # a whole command
        *(("merge/full.py", option) for option in ("--dense-delta", "--fuse")),  # `loramerge combine`
    }
    assert set(typed) - commands == set()


PYTHON = {  # what only a caller in Python can do wrong, or is offered
    ("formats/state_dict.py", "alpha"),
    ("formats/state_dict.py", "config"),
    ("merge/run.py", "bare"),
    ("request/entry.py", "method"),
    ("request/recipe.py", "weights"),
    ("request/request.py", "rank"),
    ("routing/gates/names.py", "gate"),
    ("routing/router.py", "inputs"),
    ("sources/bundles.py", "row"),
}
SETTINGS = (*FIELDS, "method", "rank", "energy", "task", "inputs", "gate", "config")


def test_no_sentence_writes_a_setting_of_python_by_hand():
    """It would be read in a shell, too."""
    setting = re.compile(rf"(?<![\w.(-])({'|'.join(SETTINGS)})=(?!=)")
    found = {
        (place, name)
        for place, text in sentences()
        if not place.startswith(("cli/", "pages/", "charts/"))
        for name in setting.findall(text)
    }
    assert found == PYTHON
