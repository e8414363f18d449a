"""`--recipe` and `--print-recipe`: what the command line can say in a file, and more; nothing unknown."""

import pytest
import yaml

import loramerge
from tests.helpers.files import content, folder, tensors

RECIPE = """
sources:
  - a
  - source: b
    weight: {from: 0.2, to: 0.8}
    revision: v1.2
method: lego
parameters: {rank: 3, seed: 5}
dtype: bfloat16
only: '[qv]$'
modules:
  - {match: 'v$', weights: [1, 0]}
  - {match: 'layers.1', rank: 1}
"""


@pytest.fixture(autouse=True)
def sources(cli, tmp_path):
    folder(tmp_path / "a", tensors(1))
    folder(tmp_path / "b", tensors(2, 3), r=3, lora_alpha=6)
    (tmp_path / "r.yaml").write_text(RECIPE)


def test_a_recipe_is_what_the_library_can_be_asked(cli, tmp_path):
    assert cli("combine", "--recipe", "r.yaml", "-o", "m").code == 0
    rules = [loramerge.Rule("v$", (1, 0)), loramerge.Rule("layers.1", rank=1)]
    weights = [1.0, loramerge.Ramp(0.2, 0.8)]
    asked = {"rank": 3, "seed": 5, "dtype": "bfloat16", "only": "[qv]$", "rules": rules, "weights": weights}
    loramerge.combine(["a", "b"], "lego", out="n", **asked)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "n" / name).read_bytes()
    assert '"revision": "v1.2"' in (tmp_path / "m/loramerge.json").read_text()
    assert cli("replay", "m").code == 0
    assert "the same numbers as m" in cli.out
    assert content(tmp_path / "m") == content(tmp_path / "replayed")


COMMANDS = {
    "nothing but sources": ["a", "b"],
    "weights": ["a", "b", "--weights", "0.1,-1e-7"],
    "one at a time": ["a", "b", "-w", "2", "-w", "3"],
    "a method": ["a", "b", "--method", "lego", "--rank", "2", "--restarts", "2"],
    "an energy": ["a", "--method=svd", "--energy", "0.5"],
    "settings": ["a", "b", "--only", "é|'q\"", "--only", "q", "--exclude", "1", "--dtype", "float64"],
    "a base mismatch": ["a", "b", "--allow-base-mismatch"],
    "a recipe": ["--recipe", "r.yaml"],
    "a recipe with other weights": ["--recipe", "r.yaml", "--weights", "1,2"],
    "a folder": ["."],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_printed_recipe_gives_the_same_merge(cli, tmp_path, command):
    assert cli("combine", *command, "--print-recipe").code == 0
    assert cli.err.replace("note: . also holds r.yaml, which is not an adapter\n", "") == ""
    (tmp_path / "printed.yaml").write_text(cli.out)
    text = cli.out
    assert cli("combine", "--recipe", "printed.yaml", "--print-recipe").out == text
    assert cli("combine", *command, "-o", "m").code == 0
    assert cli("combine", "--recipe", "printed.yaml", "-o", "n").code == 0
    assert named(content(tmp_path / "m")) == content(tmp_path / "n")


def named(merge):
    """The files of a merge whose method was the default as if somebody had named it, which a recipe does."""
    record = merge["loramerge.json"].replace(b'"default": true,\n    ', b"")
    return {**merge, "loramerge.json": record}


def test_printing_reads_no_adapter_and_writes_nothing(cli, tmp_path):
    before = content(tmp_path)
    assert cli("combine", "x", "y", "--weights", "1,2", "--method", "svd", "--print-recipe").code == 0
    assert yaml.safe_load(cli.out) == {
        "sources": [{"source": "x", "weight": 1.0}, {"source": "y", "weight": 2.0}],
        "method": "svd",
    }
    assert content(tmp_path) == before


OVERRIDES = {  # the options, and what of the printed recipe they change
    "nothing": ([], {}),
    "a parameter": (["--rank", "1"], {"parameters": {"rank": 1, "seed": 5}}),
    "a parameter's rival": (["--energy", "0.5"], {"parameters": {"seed": 5, "energy": 0.5}}),
    "a default": (["--seed", "0"], {"parameters": {"rank": 3, "seed": 0}}),
    "the method": (["--method", "svd"], {"method": "svd", "parameters": {"rank": 3}}),
    "a setting": (["--dtype", "float16"], {"dtype": "float16"}),
    "an alpha": (["--alpha", "a=3"], {"alpha": {"a": 3.0}}),
    "the weights": (
        ["--weights", "3,4"],
        {"sources": [{"source": "a", "weight": 3.0}, {"source": "b", "weight": 4.0, "revision": "v1.2"}]},
    ),
    "the sources": (["b", "a"], {"sources": [{"source": "b"}, {"source": "a"}]}),
}


@pytest.mark.parametrize(("options", "changes"), OVERRIDES.values(), ids=OVERRIDES)
def test_the_command_line_comes_before_the_recipe(cli, options, changes):
    plain = yaml.safe_load(cli("combine", "--recipe", "r.yaml", "--print-recipe").out)
    assert cli("combine", "--recipe=r.yaml", *options, "--print-recipe").code == 0
    assert yaml.safe_load(cli.out) == {**plain, **changes}
    assert ("note: seed of the recipe is not for svd" in cli.err) == ("svd" in options)


def test_help_with_a_recipe_shows_the_options_of_its_method(cli):
    assert "--restarts" in cli("combine", "--recipe", "r.yaml", "--help").out
    assert "--restarts" not in cli("combine", "--recipe", "r.yaml", "--method", "svd", "--help").out


WRONG = {
    "no file": (None, 1, "r.yaml does not exist"),
    "no YAML": ("a: [", 1, "is not valid YAML"),
    "two documents": ("a: 1\n---\nb: 2", 1, "is not valid YAML"),
    "an object of Python": ("!!python/object/apply:os.system [true]", 1, "could not determine a constructor"),
    "an alias": ("sources: &a [x]\nmodules: *a", 1, "aliases (*name) are not read"),
    "a bomb": ("a: &a [x]\nb: &b [*a,*a,*a]", 1, "aliases"),
    "deep nesting": ("[" * 20_000, 1, "not valid YAML"),
    "a huge file": ("#" * (2**18 + 1), 1, "more than 256 KiB"),
    "raw bytes": ("\x00", 1, "not valid YAML"),
    "a key twice": ("method: svd\nmethod: lego", 1, "'method' is there twice"),
    "a list": ("- a", 2, "not a table of settings"),
    "nothing": ("", 2, "not a table of settings"),
    "the record of a merge": ('{"schema": 1}', 2, "loramerge replay"),
    "an unknown key": ("sources: [a]\nout: /etc/x", 2, "has the key 'out'; there are sources, method"),
    "a key with an escape": ('"a\\e[31m": 1', 2, "the key 'a\\x1b[31m'"),
    "a key that is no text": ("1: 2", 2, "has the key 1"),
    "an unknown key of a source": ("sources: [{source: a, file: b}]", 2, "a source has the key 'file'"),
    "a source without a path": ("sources: [{weight: 1}]", 2, "source is None, not text"),
    "sources in a table": ("sources: {a: 1}", 2, "sources is {'a': 1}, not a list"),
    "a source that is a number": ("sources: [1]", 2, "a source is neither"),
    "a weight of text": ("sources: [{source: a, weight: x}]", 2, "weight is 'x', not a number"),
    "a weight that is yes": ("sources: [{source: a, weight: yes}]", 2, "weight is True"),
    "an infinite weight": ("sources: [{source: a, weight: .inf}]", 2, "weight is inf"),
    "a revision of digits": ("sources: [{source: a, revision: 12}]", 2, "revision is 12, not text"),
    "half a ramp": ("sources: [{source: a, weight: {from: 1}}]", 2, "to of weight is None"),
    "a ramp of more": ("sources: [{source: a, weight: {from: 1, to: 2, at: 3}}]", 2, "has the key 'at'"),
    "no sources": ("method: svd", 2, "Missing argument 'SOURCE...'"),
    "an unknown method": ("sources: [a]\nmethod: legoo", 2, "Did you mean lego?"),
    "a method that is a list": ("sources: [a]\nmethod: [svd]", 2, "method is ['svd'], not text"),
    "an unknown parameter": ("sources: [a]\nparameters: {x: 1}", 2, "linear has no option x"),
    "a parameter of the driver": ("sources: [a]\nparameters: {threads: 1}", 2, "no option threads"),
    "a parameter that is no text": ("sources: [a]\nparameters: {1: 1}", 2, "parameters has the key 1"),
    "a bad parameter": ("sources: [a]\nparameters: {rank: x}", 2, "rank='x' must be a whole number"),
    "an alpha in a list": ("sources: [a]\nalpha: [1]", 2, "alpha is [1], which is neither"),
    "an alpha for nobody": ("sources: [a]\nalpha: {c: 1}", 2, "not one of the sources"),
    "an unknown rule": ("sources: [a]\nmodules: [{match: q, seed: 1}]", 2, "a rule in modules has the key"),
    "a rule without a match": ("sources: [a]\nmodules: [{rank: 1}]", 2, "match is None"),
    "a rule of too many weights": ("sources: [a]\nmodules: [{match: q, weights: [1, 2]}]", 2, "2 weights"),
    "a rule that is no pattern": ("sources: [a]\nmodules: [{match: (}]", 2, "not a regular expression"),
    "a flag of text": ("sources: [a]\nallow_base_mismatch: 'no'", 2, "which must be True or False"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "code", "words"), WRONG.values(), ids=WRONG)
def test_what_a_recipe_says_badly_is_refused_by_name(cli, tmp_path, text, code, words):
    (tmp_path / "r.yaml").unlink() if text is None else (tmp_path / "r.yaml").write_text(text)
    before = content(tmp_path)
    assert cli("combine", "--recipe", "r.yaml").code == code, cli.err
    assert words in cli.err
    assert cli.err.splitlines()[-1].startswith("Error: ")
    assert cli.out == ""
    assert content(tmp_path) == before


def test_collections_are_shown_in_order_with_what_was_left_aside(cli, tmp_path):
    assert cli("combine", ".", "--dry-run").code == 0
    assert cli.out.startswith("1 × a\n1 × b\nwould write merged:")
    assert "note: . also holds r.yaml, which is not an adapter\n" in cli.err
    (tmp_path / "list").write_text("b 0.5\na\n")
    assert cli("combine", "@list", "--dry-run").out.startswith("0.5 × b\n1 × a\n")
    assert cli("combine", "[ab]", "--weights", "3,4", "--dry-run").out.startswith("3 × a\n4 × b\n")
    assert cli("combine", ".", "--weights", "1").code == 2
    assert "1 weights for 2 adapters" in cli.err
    assert cli("inspect", ".", "--json").code == 0
    assert [facts["name"] for facts in cli.json()["adapters"]] == ["a", "b"]


def test_what_a_recipe_cannot_say_is_told_and_the_rest_is_kept(cli, tmp_path):
    words = ["--initial", "a=start", "--max-error", 0.5, "--threads", 2, "--allow-pickle", "-o", "m"]
    done = cli("combine", "a", "b", *words, "--print-recipe")
    assert yaml.safe_load(done.out) == {
        "sources": [{"source": "a"}, {"source": "b"}],
        "method": "level",
        "initial": {"a": "start"},
        "max_error": 0.5,
    }
    told = [line.partition(":")[2].partition(":")[0] for line in done.err.splitlines()]
    assert told == [f" a recipe does not say --{name}" for name in ("allow-pickle", "out", "threads")]


def test_a_pasted_call_of_peft_is_told_as_a_command(cli, tmp_path):
    call = 'model.add_weighted_adapter(["a","b"], [1.0, .5], "ab", combination_type="ties", density=0.2)'
    line = "loramerge combine a b --method ties --weights 1,0.5 --density 0.2 -o ab"
    (tmp_path / "call.py").write_text(f"from peft import PeftModel\n{call}\n")
    for words in ((call,), ("--recipe", "call.py")):
        done = cli("combine", *words)
        assert done.code == 2
        assert line in done.err.splitlines()


def test_a_recipe_among_the_sources_is_told_where_it_belongs(cli, tmp_path):
    (tmp_path / "r.yaml").write_text("sources: [a, b]\nmethod: ties\n")
    (tmp_path / "mk.yml").write_text("merge_method: ties\nmodels: [{model: x+a}]\n")
    for command in ("combine", "inspect", "check", "route"):
        cli(command, "r.yaml").refused(
            2, "r.yaml is a recipe, not an adapter: loramerge combine takes it by --rec"
        )
        told = cli(command, "mk.yml")
        assert told.code == 2
        assert "it is a recipe of mergekit" in told.err
        assert "method: ties" in told.err.splitlines()
