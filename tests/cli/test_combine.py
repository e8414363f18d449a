"""`loramerge combine`: every option does what it says; results on stdout, words on stderr."""

import json
import os

import numpy as np
import pytest

import loramerge
from loramerge.algorithms import METHODS
from tests.helpers.files import SHAPES, bare, content, dense, folder, read, tensors

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def sources(cli, tmp_path):
    """Folders a (rank 2) and b (rank 3), bare files c and d, of which d does not say its alpha."""
    folder(tmp_path / "a", tensors(1, 2))
    folder(tmp_path / "b", tensors(2, 3), r=3, lora_alpha=6)
    bare(tmp_path / "c.safetensors", tensors(3), {"lora_adapter_metadata": '{"r": 2, "lora_alpha": 2}'})
    bare(tmp_path / "d.safetensors", tensors(4))


def total(tmp_path, first=1.0, second=1.0):
    """The weighted sum of a and b, densely."""
    a, b = (dense(read(tmp_path / name / WEIGHTS), 2.0) for name in "ab")
    return {path: first * a[path] + second * b[path] for path in a}


def assert_merged(path, wanted, tolerance=1e-5):
    found = dense(read(path))
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        (["--method", "linear"], 1, 1),
        (["-w", "0.5", "-w", "-2"], 0.5, -2),
        (["--weight", "0.5", "--weight", "0"], 0.5, 0),
        (["--weights", "0.7,-0.3"], 0.7, -0.3),
        (["--weights=-1,1e-1"], -1, 0.1),
        (["--weights", " 1 , 2 "], 1, 2),
        (["--method", "cat"], 1, 1),
        (["--method=average"], 0.5, 0.5),
        (["--method", "average", "--method", "linear"], 1, 1),
    ],
)
def test_weights_and_methods(cli, tmp_path, options, first, second):
    assert cli("combine", "a", "b", *options).code == 0
    assert_merged(tmp_path / "merged" / WEIGHTS, total(tmp_path, first, second))


@pytest.mark.parametrize(
    ("arguments", "out"),
    [
        (["a", "b"], "merged"),
        (["a", "c.safetensors"], "merged"),
        (["c.safetensors"], "merged.safetensors"),
        (["c.safetensors", "-o", "x"], "x"),
        (["a", "-o", "x.safetensors"], "x.safetensors"),
        (["a", "--out", "x/"], "x"),
        (["c.safetensors", "d.safetensors", "--alpha", "4"], "merged.safetensors"),
        (["./a/", "../here/b"], "merged"),
        (["c.safetensors", "link"], "merged"),
        (["a", "-o", "name with spaces é"], "name with spaces é"),
    ],
)
def test_where_the_output_goes(cli, tmp_path, arguments, out):
    (tmp_path / "link").symlink_to("b")
    arguments = [argument.replace("here", tmp_path.name) for argument in arguments]
    before = set(os.listdir(tmp_path))
    assert cli("combine", *arguments, "-q").code == 0
    assert cli.out == f"{out}\n"
    assert cli.err == ""
    assert set(os.listdir(tmp_path)) - before == {out}
    assert (tmp_path / out).is_file() == out.endswith(".safetensors")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"energy": 0.8}], ids=str)
def test_the_command_line_writes_what_the_library_writes_byte_for_byte(cli, tmp_path, method, options):
    if options.keys() - set(METHODS[method].names()):
        return
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    traits = METHODS[method]().traits
    other = "b" if traits.units == "any" else "like-a"
    folder(tmp_path / "like-a", {k: v * (2 if "lora_B" in k else 1) for k, v in tensors(1).items()})
    second = -0.5 if traits.negative else 0.5
    arguments = ["--method", method, *words, "--weights", f"1,{second}", "-o", "x"]
    assert cli("combine", "a", other, *arguments).code == 0
    loramerge.combine(["a", other], method, weights=[1, second], out="y", **options)
    assert content(tmp_path / "x") == content(tmp_path / "y")


def rank_of(path):
    return loramerge.load(path).rank


def test_rank_energy_and_seed(cli, tmp_path):
    for rank in (1, 3, 5):
        assert cli("combine", "a", "b", "--rank", rank, "--overwrite").code == 0
        assert rank_of("merged") == rank
    assert cli("combine", "a", "b", "--rank", 10**30, "--overwrite").code == 0
    assert rank_of("merged") == 5
    assert cli("combine", "a", "b", "--energy", 1, "--overwrite").code == 0
    assert rank_of("merged") == 5
    assert cli("combine", "a", "b", "--energy", "1e-9", "--overwrite").code == 0
    assert rank_of("merged") == 1
    assert cli("combine", "a", "b", "--method", "lego", "--overwrite").code == 0
    assert rank_of("merged") == 3, "the largest of the sources"
    seeds = {}
    for seed in range(8):
        assert (
            cli("combine", "a", "b", "--method", "lego", "--restarts", 1, "--seed", seed, "--overwrite").code
            == 0
        )
        seeds[seed] = (tmp_path / "merged" / WEIGHTS).read_bytes()
    assert len(set(seeds.values())) > 1


def test_only_and_exclude_choose_modules(cli, tmp_path):
    for options, kept in [
        (["--only", "v$"], {"layers.0.v", "layers.1.v"}),
        (["--exclude", r"\.0\."], {"layers.1.q", "layers.1.v"}),
        (["--only", "q", "--exclude", "layers.1"], {"layers.0.q"}),
    ]:
        assert cli("combine", "a", "b", "--method", "linear", *options, "--overwrite").code == 0
        wanted = {path: value for path, value in total(tmp_path).items() if path in kept}
        assert_merged(tmp_path / "merged" / WEIGHTS, wanted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_dtype(cli, dtype):
    assert cli("combine", "a", "b", "--dtype", dtype).code == 0
    assert dtype in cli.err
    assert cli("inspect", "merged", "--json").json()["adapters"][0]["dtype"] == dtype


def test_alpha_for_the_files_that_need_it(cli, tmp_path):
    for given, scale in [("d.safetensors=8", 4.0), ("8", 4.0), ("./d.safetensors=8", None), ("rank", 1.0)]:
        both = ("c.safetensors", "d.safetensors", "--method", "linear")
        cli("combine", *both, "--alpha", given, "--overwrite")
        if scale is None:
            cli.refused(2, "--alpha names ./d.safetensors, which is not one of the sources")
            continue
        assert cli.code == 0
        c, d = (dense(tensors(seed), s) for seed, s in ((3, 1.0), (4, scale)))
        assert_merged(tmp_path / "merged.safetensors", {path: c[path] + d[path] for path in SHAPES})
        noted = "note: c.safetensors: it says its own alpha, so the one given is not used for it" in cli.err
        assert noted == ("=" not in given)


ALPHAS = {
    "for a file that says its own": (["c.safetensors=16"], "c.safetensors says its own alpha"),
    "for a folder": (["a=16"], "a says its own alpha"),
    "for nobody": (["e.safetensors=16"], "not one of the sources"),
    "two for all": (["16", "8"], "--alpha SOURCE=A for each"),
    "one for all and one by name": (["16", "d.safetensors=8"], "--alpha SOURCE=A for each"),
    "no number": (["d.safetensors=x"], "neither a number nor 'rank'"),
    "empty": ([""], "followed by an empty word"),
    "nan": (["nan"], "neither a number from 1e-30 to 1e+30 nor 'rank'"),
    "infinite": (["d.safetensors=inf"], "neither a number from 1e-30 to 1e+30 nor 'rank'"),
    "denormal": (["5e-324"], "neither a number from 1e-30 to 1e+30 nor 'rank'"),
    "0": (["0"], "neither a number from 1e-30 to 1e+30 nor 'rank'"),
}


@pytest.mark.parametrize(("given", "words"), ALPHAS.values(), ids=ALPHAS)
@pytest.mark.parametrize("command", ["combine", "inspect"])
def test_an_alpha_that_cannot_be_meant_is_a_usage_error(cli, tmp_path, given, words, command):
    named = [word for alpha in given for word in ("--alpha", alpha)]
    cli(command, "c.safetensors", "a", *(["d.safetensors"] if "d.safe" in str(given) else []), *named)
    assert cli.code == 2
    assert words in cli.err
    if "says its own" not in words or command == "combine":  # inspect shows the others
        assert cli.out == ""
    assert not (tmp_path / "merged").exists()


def test_the_same_source_twice_takes_the_same_alpha(cli, tmp_path):
    again = ["d.safetensors", "d.safetensors", "--method", "linear"]
    assert cli("combine", *again, "--alpha", "d.safetensors=4").code == 0
    assert_merged(tmp_path / "merged.safetensors", {k: 2 * v for k, v in dense(tensors(4), 2.0).items()})


USAGE = {
    "no source": ([], "Missing argument"),
    "an unknown option": (["a", "--frobnicate"], "No such option"),
    "an option of another method": (
        ["a", "--variant", "ctm"],
        "--variant is an option of lego, not of level",
    ),
    "another": (
        ["a", "--method", "cat", "--energy", "0.5"],
        "--energy is an option of linear, average, svd, lego",
    ),
    "a choice that is none": (["a", "--method", "lego", "--variant", "x"], "'intrinsic', 'ctm', 'nsc'"),
    "an unknown method": (["a", "--method", "leggo"], "Did you mean lego? There are: linear"),
    "a method without likeness": (["a", "--method", "xyzzy"], "There is no method 'xyzzy'. There are:"),
    "a method in an unknown place": (["--method"], "requires an argument"),
    "too few weights": (["a", "b", "-w", "1"], "1 weights for 2 adapters"),
    "too many weights": (["a", "--weights", "1,2"], "2 weights for 1 adapters"),
    "weights in both ways": (["a", "-w", "1", "--weights", "1"], "not by both"),
    "weights that are no numbers": (["a", "--weights", "x"], "no list of numbers such as 0.7,-0.3"),
    "a weight that is no number": (["a", "-w", "x"], "not a valid float"),
    "a weight that is nan": (["a", "-w", "nan"], "not a finite number"),
    "an infinite weight": (["a", "--weights", "inf"], "not a finite number"),
    "rank 0": (["a", "--rank", "0"], "x>=1"),
    "energy 0": (["a", "--energy", "0"], "0<x<=1"),
    "energy nan": (["a", "--energy", "nan"], "'--energy': nan is not a number"),
    "an energy too small to square": (["a", "--energy", "1e-160"], "'--energy': 1e-160 must be from 1e-30"),
    "an infinite option of a method": (["a", "--rank-tol", "inf"], "'--rank-tol': "),
    "a cosine above 1": (["a", "--min-cosine", "2"], "2.0 is not in the range 0<=x<=1"),
    "a row of control characters": (["a", "--row", "b\x1b[31m"], r"--row $'b\x1b[31m' is for bundles"),
    "rank and energy": (["a", "--rank", "1", "--energy", "1"], "both set the size"),
    "a max-error of nan": (["a", "--max-error", "nan"], "nan is not a number"),
    "a max-error below 0": (["a", "--max-error", "-1"], "x>=0"),
    "a dtype that is none": (["a", "--dtype", "int8"], "'bfloat16'"),
    "no regular expression": (["a", "--only", "("], "--only '(' is not a regular expression"),
    "no module left": (["a", "--exclude", "."], "a module here is called layers.0.q"),
    "two forms of output": (["a", "--json", "-q"], "one of them"),
    "an option of ctm in intrinsic": (["a", "--method", "lego", "--gain", "none"], "variant=ctm"),
}


@pytest.mark.parametrize(("arguments", "words"), USAGE.values(), ids=USAGE)
def test_a_usage_error_is_exit_2_with_a_sentence(cli, tmp_path, arguments, words):
    before = content(tmp_path)
    assert cli("combine", *arguments).code == 2
    assert words in cli.err
    assert cli.err.splitlines()[-1].startswith("Error: ")
    assert cli.out == ""
    assert content(tmp_path) == before


def test_help_shows_the_options_of_the_named_method_only(cli):
    for method, cls in METHODS.items():
        shown = cli("combine", "--method", method, "--help").out
        assert cli.code == 0
        for name in ("rank", "energy", "seed", "variant", "restarts"):
            assert (f"\n  --{name} " in shown) == (name in cls.names())
    assert cli("combine", "-h").out == cli("combine", "--help", "--method", "level").out, "the default"


def test_the_report_is_on_stdout_and_the_words_on_stderr(cli):
    assert cli("combine", "a", "b", "--method", "svd", "--rank", 1).code == 0
    head, first, second, energy, worst = cli.out.splitlines()
    assert head.split() == ["source", "weight", "cos(merge)", "‖merge‖/‖·‖", "cos(1)", "cos(2)"]
    assert first.startswith("1 a ")
    assert second.startswith("2 b ")
    assert energy.startswith("energy lost ")
    assert worst.startswith("most lost in: layers.")
    assert cli.err == "wrote merged: svd, 4 modules, rank 1, float32, 176 B\n"


def test_notes_are_on_stderr(cli, tmp_path):
    folder(tmp_path / "p", tensors(5, 30, {"layers.9.q": (40, 50)}), r=30, bias="all")
    assert cli("combine", "a", "p").code == 0
    assert "note: a has 4 of the 5 modules; it counts as zero in the others\n" in cli.err
    assert "note: p has 1 of the 5 modules" in cli.err
    assert "note: p: bias is all, but there is no bias tensor" in cli.err
    assert "note: rank 30 is above 16, vLLM's default --max-lora-rank" in cli.err


def test_json_is_the_report_and_nothing_else(cli, tmp_path):
    assert cli("combine", "a", "b", "--json", "--weights", "1,0", "--method", "lego").code == 0
    assert cli.err == ""
    facts = cli.json()
    assert facts["out"] == "merged"
    assert facts["method"]["name"] == "lego"
    assert [s["weight"] for s in facts["sources"]] == [1.0, 0.0]
    recorded = json.loads((tmp_path / "merged/loramerge.json").read_text())["report"]
    modules = [facts["modules"], recorded.pop("modules")]
    assert {name: facts[name] for name in recorded} == recorded
    for shown, kept in zip(*modules, strict=True):  # what is null stands in the answer alone
        assert shown == dict.fromkeys(shown) | kept


def test_nothing_but_zeros_has_no_cosines_and_no_nan(cli, tmp_path):
    for name in "xy":
        folder(tmp_path / name, {k: 0 * v for k, v in tensors().items()})
    for method in METHODS:
        assert cli("combine", "x", "y", "-w1", "-w1", "--method", method, "--json", "--overwrite").code == 0
        assert {s["cosine"] for s in cli.json()["sources"]} == {None}
        assert cli("combine", "x", "y", "-w1", "-w1", "--method", method, "--overwrite").code == 0
        assert "–" in cli.out


@pytest.mark.parametrize("form", [[], ["--json"], ["-q"]], ids=["table", "json", "quiet"])
def test_a_dry_run_says_what_would_be_and_writes_nothing(cli, tmp_path, form):
    before = content(tmp_path)
    assert cli("combine", "a", "b", "--energy", "0.9", "--weights", "1,-1", "--dry-run", *form).code == 0
    assert content(tmp_path) == before
    if form == ["--json"]:
        facts = cli.json()
        assert (facts["out"], facts["weights"], len(facts["modules"])) == ("merged", [1.0, -1.0], 4)
    elif form == ["-q"]:
        assert cli.out == "merged\n"
    else:
        assert cli.out.startswith("1 × a\n-1 × b\nwould write merged: linear (the default with weights), ")
        assert " 4 modules, rank " in cli.out.replace("\n", " ")


def test_a_dry_run_foretells_the_rank_the_size_and_a_refusal(cli, tmp_path):
    words = ["combine", "a", "b", "--method", "svd", "--energy", "0.9"]
    facts = cli(*words, "--dry-run", "--json").json()
    assert cli(*words).code == 0
    assert rank_of("merged") == facts["rank"]
    assert sum(v.nbytes for v in read(tmp_path / "merged" / WEIGHTS).values()) == facts["bytes"]
    cli(*words, "--dry-run").refused(1, "--overwrite")


OUTPUTS = {
    "a source": ("a", "which is merged"),
    "there already": ("d", "--overwrite"),
    "a file where a folder should be": ("c", "is a file"),
    "in a folder that is not there": ("no/where", "does not exist"),
    "in a file": ("c.safetensors/x", "not a folder"),
    "a folder where a file should be": ("f.safetensors", "is a folder"),
    "this very folder": (".", "holds a, which is merged"),
}


@pytest.mark.parametrize(("out", "words"), OUTPUTS.values(), ids=OUTPUTS)
def test_an_output_that_cannot_be_is_refused_before_any_work(cli, tmp_path, out, words):
    (tmp_path / "c").touch()
    (tmp_path / "f.safetensors").mkdir()
    folder(tmp_path / "d")
    before = content(tmp_path)
    cli("combine", "a", "b", "-o", out).refused(1, words)
    assert content(tmp_path) == before


def test_sources_of_one_name_are_told_apart(cli, tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        folder(tmp_path / name / "lora", tensors())
    names = [s["name"] for s in cli("combine", "x/lora", "y/lora", "--json").json()["sources"]]
    assert names == ["x/lora", "y/lora"]
    names = [s["name"] for s in cli("combine", "a", "a", "--json", "--overwrite").json()["sources"]]
    assert names == ["a#1", "a#2"]


@pytest.mark.parametrize(("scale", "factor"), [("0.5", 0.5), ("-2", -2.0), ("1e-3", 1e-3)])
def test_scale_multiplies_the_merge(cli, tmp_path, scale, factor):
    assert cli("combine", "a", "b", "--method", "linear", f"--scale={scale}", "-o", "m").code == 0
    assert_merged(tmp_path / "m" / WEIGHTS, total(tmp_path, factor, factor))
    assert f"scaled by {factor:.3g}" in cli.out


@pytest.mark.parametrize("policy", ["norm", "fade", "cosine"])
def test_a_policy_of_strength_is_said_and_can_be_a_recipe(cli, tmp_path, policy):
    words = ("combine", "a", "b", "--method", "linear", "--scale", policy)
    assert cli(*words, "-o", "m").code == 0
    assert "scaled by" in cli.out
    recipe = cli(*words, "--print-recipe").out
    (tmp_path / "r.yaml").write_text(recipe)
    assert cli("combine", "--recipe", "r.yaml", "-o", "again").code == 0
    assert content(tmp_path / "m") == content(tmp_path / "again")


def test_a_scale_that_is_none_is_refused(cli):
    assert cli("combine", "a", "b", "--scale", "strong").code == 2
    assert "neither a finite number nor one of norm, fade, cosine" in cli.err
