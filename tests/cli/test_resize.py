"""`resize`, and the curve of error against size that a dry run shows."""

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import UsageError
from tests.helpers.files import content, dense, folder, read, tensors

WEIGHTS = "adapter_model.safetensors"
SPREAD = {"layers.0.q": (40, 30), "layers.0.v": (24, 70), "layers.1.q": (40, 30)}


@pytest.fixture(autouse=True)
def source(cli, tmp_path):
    """Folder a of rank 6, its modules of other strengths."""
    values = tensors(0, 6, SPREAD)
    for name in values:
        values[name] = values[name] * (3 if "0.v" in name else 1)
    return folder(tmp_path / "a", values, r=6, lora_alpha=12)


def spectra(path, scale=2.0):
    return {p: np.linalg.svd(m, compute_uv=False) ** 2 for p, m in dense(read(path / WEIGHTS), scale).items()}


SIZES = {
    "rank": ["--rank", 2],
    "energy": ["--energy", 0.9],
    "total rank": ["--total-rank", 8],
    "size": ["--size", "5kB"],
}


@pytest.mark.parametrize("profile", ["portable", "compact"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_it_is_the_svd_of_one_adapter(cli, tmp_path, size, profile):
    words = [*size, "--profile", profile]
    assert cli("resize", "a", *words, "-o", "m", "-q").code == 0
    assert cli.out == "m\n"
    assert cli("combine", "a", "--method", "svd", *words, "-o", "n").code == 0
    assert content(tmp_path / "m") == content(tmp_path / "n")
    option = {size[0].strip("-").replace("-", "_"): size[1]}
    lm.resize("a", "o", profile=profile, **option)
    assert content(tmp_path / "m") == content(tmp_path / "o")
    assert cli("replay", "m").code == 0
    assert "the same numbers as m" in cli.out


def test_what_is_lost_is_what_was_cut_off(cli, tmp_path):
    assert cli("resize", "a", "--total-rank", 8, "--profile", "compact", "-o", "m", "--json").code == 0
    lost, squares = json.loads(cli.out)["energy_lost"], spectra(tmp_path / "a")
    each = np.sort(np.concatenate([s for s in squares.values()]))[::-1]
    kept = sum(s[0] for s in squares.values())
    rest = np.sort(np.concatenate([s[1:] for s in squares.values()]))[::-1][: 8 - 3]
    assert lost == pytest.approx(1 - (kept + rest.sum()) / each.sum(), rel=1e-5)


def test_a_size_is_that_of_the_file(cli, tmp_path):
    for out in ("m", "m.safetensors"):
        assert cli("resize", "a", "--size", "6kB", "-o", out).code == 0
        path = tmp_path / out
        assert (path if path.suffix else path / WEIGHTS).stat().st_size <= 6000


def test_a_dry_run_shows_what_other_sizes_would_lose(cli, tmp_path):
    assert cli("resize", "a", "--rank", 2, "--dry-run", "--json").code == 0
    facts = json.loads(cli.out)
    squares, curve = spectra(tmp_path / "a"), facts["curve"]
    whole = sum(s.sum() for s in squares.values())
    assert [point["rank"] for point in curve] == [1, 2, 4, 6]
    for point in curve:
        rank, out = point["rank"], f"r{point['rank']}"
        assert point["total_rank"] == 3 * rank
        assert point["energy_lost"] == pytest.approx(
            sum(s[rank:].sum() for s in squares.values()) / whole, abs=1e-7
        )
        assert cli("resize", "a", "--rank", rank, "-o", out).code == 0
        assert (tmp_path / out / WEIGHTS).stat().st_size == point["bytes"]
    assert not (tmp_path / "resized").exists()


def test_each_point_of_a_compact_curve_can_be_had(cli, tmp_path):
    words = ["--profile", "compact", "--dry-run", "--json"]
    assert cli("combine", "a", "--method", "svd", *words).code == 0
    for point in json.loads(cli.out)["curve"]:
        merge = lm.resize(
            "a", tmp_path / "m", total_rank=point["total_rank"], profile="compact", overwrite=True
        )
        assert (tmp_path / "m" / WEIGHTS).stat().st_size == point["bytes"]
        assert merge.report.energy_lost == pytest.approx(point["energy_lost"], abs=1e-7)


def test_the_curve_is_a_short_table(cli):
    assert cli("combine", "a", "--dry-run").code == 0
    head, *rows = cli.out.splitlines()[-5:]
    assert head.split() == ["total", "rank", "largest", "size", "energy", "lost", "at", "best"]
    assert [row.split()[:2] for row in rows] == [["3", "1"], ["6", "2"], ["12", "4"], ["18", "6"]]
    assert rows[-1].endswith("0 %")


def test_a_method_without_a_rank_has_no_curve(cli):
    assert cli("combine", "a", "--method", "cat", "--dry-run", "--json").code == 0
    assert json.loads(cli.out)["curve"] == []


WRONG = {
    "no size": (["a"], "Give one of --rank, --energy, --total-rank, --size or --energy-per-module"),
    "two sizes": (["a", "--rank", 1, "--size", "1MB"], "not --rank and --size"),
    "two sources": (["a", "a", "--rank", 1], "unexpected extra argument"),
    "a collection": ([".", "--rank", 1], "stands for 2 adapters"),
    "no adapter": (["x", "--rank", 1], "x"),
    "quiet and json": (["a", "--rank", 1, "-q", "--json"], "give one of them"),
    "size nonsense": (["a", "--size", "huge"], "is not a size such as 500MB"),
}


@pytest.mark.parametrize(("words", "sentence"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_meant_is_refused(cli, tmp_path, words, sentence):
    folder(tmp_path / "b", tensors(1))
    found = cli("resize", *words)
    assert found.code == (1 if words[0] == "x" else 2)
    assert sentence in cli.err
    assert not (tmp_path / "resized").exists()


def test_the_library_refuses_the_same():
    with pytest.raises(UsageError, match="size or energy_per_module, for there is none"):
        lm.resize("a")


def test_an_existing_output_is_replaced_when_that_is_asked_for(cli):
    assert cli("resize", "a", "--rank", 1).code == 0
    assert cli("resize", "a", "--rank", 1).code == 1
    assert cli("resize", "a", "--rank", 1, "--overwrite").code == 0


def test_a_size_on_the_command_line_takes_the_place_of_that_in_a_recipe(cli, tmp_path):
    recipe = "sources: [a]\nmethod: svd\nprofile: compact\nsize: 4kB\n"
    (tmp_path / "r.yaml").write_text(recipe)
    assert cli("combine", "--recipe", "r.yaml", "-o", "m").code == 0
    assert (tmp_path / "m" / WEIGHTS).stat().st_size <= 4000
    assert cli("combine", "--recipe", "r.yaml", "--rank", 2, "--print-recipe").code == 0
    assert "size" not in cli.out
    (tmp_path / "r.yaml").write_text(recipe.replace("size: 4kB", "parameters: {rank: 2}"))
    assert cli("combine", "--recipe", "r.yaml", "--total-rank", 9, "--print-recipe").code == 0
    assert "total_rank: 9" in cli.out
    assert "parameters" not in cli.out


def test_heads_are_decided_about_as_the_refusal_says(cli, tmp_path):
    head = {"base_model.model.score.weight": np.ones((2, 3), np.float32)}
    folder(tmp_path / "h", tensors(0, 3) | head, r=3, modules_to_save=["score"])
    cli("resize", "h", "--rank", 1, "-o", "m").refused(3, "--extras")
    assert cli("resize", "h", "--rank", 1, "-o", "m", "--extras", "first").code == 0
    assert "base_model.model.score.weight" in read(tmp_path / "m" / WEIGHTS)
    with pytest.raises(lm.IncompatibleError, match="extras"):
        lm.open([tmp_path / "h"]).combine()
    kept = lm.open([tmp_path / "h"], extras="drop").combine()
    assert kept.adapter.extras == {}
    assert lm.resize(tmp_path / "h", rank=1, extras="first", allow_pickle=True).adapter.extras
