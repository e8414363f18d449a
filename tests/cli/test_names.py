"""The command line understands the names of others: of methods, of commands, and of mergekit's recipes."""

import pytest
import yaml

from loramerge.cli import COMMANDS, VERBS
from tests.helpers.files import folder, tensors


def test_a_method_may_be_called_as_the_field_calls_it(cli, tmp_path):
    folder(tmp_path / "a", tensors(1))
    assert cli("combine", "a", "--method", "TIES", "--density", "0.5", "-o", "m").code == 0
    assert "m: ties," in cli.err
    assert cli("methods", "task-arithmetic").out.startswith("linear: ")
    assert cli("combine", "--method", "Task_Arithmetic", "--help").code == 0


@pytest.mark.parametrize(
    ("word", "meant"), [("merge", "combine"), ("Combin", "combine"), ("info", "inspect")]
)
def test_a_command_is_suggested(cli, word, meant):
    assert cli(word, "a").code == 2
    assert f"There is no command '{word}'. Did you mean {meant}?" in cli.err


def test_every_word_of_others_leads_to_a_command_and_is_none():
    assert set(VERBS.values()) <= set(COMMANDS)
    assert not VERBS.keys() & COMMANDS.keys()


MERGEKIT = {
    "merge_method": "ties",
    "base_model": "org/base",
    "models": [
        {"model": "org/base+a", "parameters": {"weight": 0.5, "density": 0.4}},
        {"model": "b", "parameters": {"density": 0.3}},
    ],
    "parameters": {"lambda": 1.5, "normalize": True},
    "dtype": "bfloat16",
}


def test_a_recipe_of_mergekit_is_answered_with_how_it_reads_here(cli, tmp_path):
    for name in "ab":
        folder(tmp_path / name, tensors(1))
    (tmp_path / "kit.yaml").write_text(yaml.safe_dump(MERGEKIT))
    assert cli("combine", "--recipe", "kit.yaml").code == 2
    assert "kit.yaml is not a loramerge recipe: it is a recipe of mergekit" in cli.err
    answer = cli.err.partition("reads here:\n\n")[2]
    assert yaml.safe_load(answer) == {
        "sources": [{"source": "a", "weight": 0.5}, "b"],
        "method": "ties",
        "parameters": {"density": 0.3},
        "scale": 1.5,
    }
    assert "# without: density 0.4, normalize, dtype\n" in answer
    (tmp_path / "ours.yaml").write_text(answer)
    assert cli("combine", "--recipe", "ours.yaml", "-o", "m").code == 0


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (("convert", "a", "b", "--to", "kohyaa"), "Did you mean kohya?"),
        (("check", "a", "--for", "vlm"), "Did you mean vllm?"),
        (("combine", "a", "--profile", "compakt"), "Did you mean compact?"),
        (("combine", "a", "--method", "ties", "--scope", "modul"), "Did you mean module?"),
        (("route", "a", "--gate", "arow"), "--gate arow is not one of arrow"),
    ],
)
def test_a_misspelt_word_of_any_option_is_told_the_nearest(cli, tmp_path, words, near):
    folder(tmp_path / "a", tensors(1))
    done = cli(*words)
    assert done.code == 2
    assert near in done.err


def test_the_answer_to_another_name_of_a_method_is_in_options_of_the_shell(cli, tmp_path):
    folder(tmp_path / "a", tensors(1))
    cli("combine", "a", "--method", "ties_svd").refused(2, "--election raw, --divisor count")
