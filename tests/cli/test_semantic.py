"""`combine --method sg`: a merge asked for in words, as a user would type it."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

import loramerge
from tests.helpers.files import content, folder, tensors

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
TEMPLATE = (
    "---\nlibrary_name: peft\n---\n# Model Card for Model ID\n- **License:** [More Information Needed]\n"
)


@pytest.fixture(autouse=True)
def sources(cli, tmp_path):
    """The fixtures with their descriptions; folders sql, with a card, and bare, with the template of one."""
    shutil.copytree(FIXTURES, tmp_path / "fixtures", ignore=shutil.ignore_patterns("base", "make.py"))
    folder(tmp_path / "sql", tensors(1))
    (tmp_path / "sql/README.md").write_text(
        "---\nlicense: mit\n---\n# SQL\nWrites SQL queries for a database."
    )
    folder(tmp_path / "bare", tensors(2))
    (tmp_path / "bare/README.md").write_text(TEMPLATE)


def asked(cli, *words):
    return cli("combine", "fixtures", "--method", "sg", "--describe", *words)


def test_a_merge_asked_for_in_words(cli, tmp_path):
    assert asked(cli, "write a word backwards", "--temperature", 0).code == 0
    head, row, *_ = cli.out.splitlines()
    assert head.split()[:3] == ["source", "similarity", "weight"]
    assert row.split()[:2] == ["1", "a.safetensors"]
    assert row.split()[3] == "1"
    assert "left out with weight 0, by similarity: b.safetensors 0.0" in cli.err
    assert "descriptions.json" not in cli.err
    found, wanted = (loramerge.load(path) for path in ("merged.safetensors", "fixtures/a.safetensors"))
    assert loramerge.diff(found, wanted).largest < 1e-6


def test_the_weights_are_data_too(cli):
    assert asked(cli, "letters of the alphabet, backwards", "--json").code == 0
    told = cli.json()
    assert [each["name"] for each in told["sources"]] == ["a.safetensors", "b.safetensors"]
    assert sum(each["weight"] for each in told["sources"]) == pytest.approx(1)
    assert all(0 < each["similarity"] < 1 for each in told["sources"])
    assert told["left_out"] == []
    assert (
        told["method"]["options"] | {"describe": "letters of the alphabet, backwards"}
        == told["method"]["options"]
    )
    assert asked(cli, "alphabet", "--temperature", "inf", "--json", "--overwrite").code == 0
    assert cli.json()["method"]["options"]["temperature"] == "inf"


def test_a_dry_run_shows_who_would_be_mixed_and_writes_nothing(cli, tmp_path):
    before = content(tmp_path)
    assert asked(cli, "the alphabet", "--dry-run").code == 0
    assert cli.out.startswith("1 × b.safetensors\nwould write merged.safetensors: sg, 12 modules, rank 4,")
    assert "left out with weight 0, by similarity: a.safetensors 0" in cli.err
    assert content(tmp_path) == before


def test_the_library_says_the_same(cli, tmp_path):
    assert asked(cli, "a word backwards", "--rank", 3, "-o", "x").code == 0
    loramerge.combine(["fixtures"], loramerge.Sg(describe="a word backwards", rank=3), out="y")
    assert content(tmp_path / "x") == content(tmp_path / "y")
    assert cli("replay", "x", "--source", "fixtures").code == 0
    assert "the same numbers as x" in cli.out
    assert content(tmp_path / "replayed") == content(tmp_path / "x")


COMMANDS = {
    "the cards and a text": [
        "sql",
        "bare",
        "--description",
        "bare=Paints in oil.",
        "--describe",
        "SQL, or oil",
    ],
    "a list": ["sql", "bare", "--descriptions", "list.json", "--describe", "poems"],
    "vectors": ["sql", "bare", "--embedding", "v.json", "--describe", "q"],
    "similarities": ["sql", "bare", "--weights", "0.9,0.85", "--top-k", "1"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_way_to_say_it_makes_a_recipe_of_the_same_merge(cli, tmp_path, command):
    Path("list.json").write_text('{"sql": "Queries and poems.", "bare": "Poems."}')
    Path("v.json").write_text('{"sql": [1, 0], "bare": [1, 1], "q": [2, 1]}')
    assert cli("combine", *command, "--method", "sg", "-o", "x").code == 0, cli.err
    assert cli("combine", *command, "--method", "sg", "--print-recipe").code == 0
    Path("r.yaml").write_text(cli.out)
    text = cli.out
    assert cli("combine", "--recipe", "r.yaml", "--print-recipe").out == text
    assert cli("combine", "--recipe", "r.yaml", "-o", "y").code == 0
    assert content(tmp_path / "x") == content(tmp_path / "y")


def test_what_is_said_on_the_command_line_comes_before_the_recipe(cli):
    recipe = {
        "sources": ["sql"],
        "method": "sg",
        "parameters": {"describe": "SQL", "temperature": float("inf")},
        "descriptions": {"sql": "SQL"},
    }
    Path("r.yaml").write_text(yaml.safe_dump(recipe))
    again = ["combine", "--recipe", "r.yaml", "--print-recipe"]
    assert yaml.safe_load(cli(*again).out) == {**recipe, "sources": [{"source": "sql"}]}
    changed = yaml.safe_load(cli(*again, "--describe", "tables", "--description", "sql=Tables.").out)
    assert changed["parameters"]["describe"] == "tables"
    assert changed["descriptions"] == {"sql": "Tables."}


WRONG = {
    "nothing described": (["sql"], 2, "say what you want with --describe TEXT"),
    "an unknown source": (
        ["sql", "--describe", "x", "--description", "sqll=x"],
        2,
        "--description names sqll, which is not one of the sources",
    ),
    "no SOURCE=TEXT": (["sql", "--description", "SQL"], 2, "'SQL' is not SOURCE=TEXT"),
    "described twice": (["sql", "--description", "sql=a", "--description", "sql=b"], 2, "sql is given twice"),
    "described and listed": (["sql", "--description", "sql=a", "--descriptions", "x"], 2, "not by both"),
    "a template for a card": (
        ["sql", "bare", "--describe", "SQL"],
        2,
        "what bare is good at: its README.md is empty, or only a template",
    ),
    "no card": (["fixtures/../fixtures", "gone", "--describe", "SQL"], 1, "gone"),
    "no common word": (["sql", "--describe", "zebras"], 2, "'zebras' shares no word with any description"),
    "an empty query": (["sql", "--describe", ""], 2, "describe is followed by an empty word"),
    "weights beside it": (["sql", "--describe", "SQL", "-w", "1"], 2, "finds the weights itself"),
    "no such list": (["sql", "--describe", "SQL", "--descriptions", "x.json"], 1, "x.json does not exist"),
    "no such vectors": (["sql", "--describe", "SQL", "--embedding", "x.npz"], 1, "x.npz does not exist"),
    "a negative temperature": (["sql", "--temperature", "-1"], 2, "x>=0"),
    "a top k of 0": (["sql", "--top-k", "0"], 2, "x>=1"),
    "no source is similar": (["sql", "--weights", "0"], 2, "No source has a similarity above 0"),
    "escapes": (["sql", "--describe", "x", "--description", "\x1b=x"], 2, r"--description names \x1b"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "words"), WRONG.values(), ids=WRONG)
def test_what_is_asked_badly_is_a_sentence_and_leaves_nothing(cli, tmp_path, arguments, code, words):
    before = content(tmp_path)
    assert cli("combine", *arguments, "--method", "sg").code == code, cli.err
    assert words in " ".join(cli.err.split())
    assert cli.err.splitlines()[-1].startswith("Error: ")
    assert cli.out == ""
    assert content(tmp_path) == before


RECIPES = {
    "descriptions in a list": ("descriptions: [a]", "descriptions is ['a'], which is not a table"),
    "a description of digits": ("descriptions: {sql: 1}", "has 1 for sql, which is not text"),
    "a source of digits": ("descriptions: {1: a}", "which names the source 1, which is not text"),
    "an embedding of digits": ("embedding: 1", "embedding is 1, which must be text"),
}


@pytest.mark.parametrize(("line", "words"), RECIPES.values(), ids=RECIPES)
def test_a_recipe_that_describes_badly_is_refused(cli, line, words):
    Path("r.yaml").write_text(f"sources: [sql]\nmethod: sg\nparameters: {{describe: SQL}}\n{line}\n")
    cli("combine", "--recipe", "r.yaml").refused(2, words)


def test_other_methods_are_told_where_descriptions_belong(cli):
    cli("combine", "sql", "--description", "sql=x").refused(2, "linear has no --describe: use --method sg")


def test_a_narrow_terminal_shows_help_and_table(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert asked(cli, "a word").code == 0
    assert cli("combine", "--method", "sg", "--help").code == 0
    for name in ("describe", "top-k", "temperature", "description", "descriptions", "embedding"):
        assert f"\n  --{name} " in cli.out


def test_the_task_that_was_asked_for_is_recorded(cli):
    assert asked(cli, "Caesar cipher", "-o", "m").code == 0
    record = json.loads(Path("m/loramerge.json").read_text())
    assert record["method"]["options"]["describe"] == "Caesar cipher"


def test_the_spread_is_written_beside_the_merge(cli, tmp_path):
    assert asked(cli, "letters of the alphabet, backwards", "--spread", "s.safetensors", "-o", "m").code == 0
    assert "the sources differ in" in cli.out
    loramerge.combine(["fixtures"], "sg", describe="letters of the alphabet, backwards", out="n").save_spread(
        "t.safetensors"
    )
    assert (tmp_path / "s.safetensors").read_bytes() == (tmp_path / "t.safetensors").read_bytes()
    before = content(tmp_path)
    for words, sentence in {
        ("-o", "o", "--spread", "s.safetensors"): "s.safetensors",
        ("-o", "o.safetensors", "--spread", "o.safetensors"): "name the same file",
        ("-o", "o", "--spread", "gone/s.safetensors"): "does not exist",
    }.items():
        assert asked(cli, "letters", *words).code in (1, 2)
        assert sentence in cli.err
    cli("combine", "sql", "bare", "--spread", "u.safetensors").refused(2, "A spread needs a mixture")
    assert content(tmp_path) == before
