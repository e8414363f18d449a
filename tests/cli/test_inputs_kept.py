"""No command writes over what it reads: its sources, models, tables, recipes and records."""

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import OutputError
from loramerge.request.kinds import Renames
from loramerge.request.request import FIELDS
from tests.helpers.files import bare, content, folder, tensors
from tests.helpers.models import random_model, save_model


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Adapters, models and tables, each of which some command reads."""
    monkeypatch.chdir(tmp_path)
    weights = random_model()
    q = "model.layers.0.self_attn.q_proj"
    for seed, name in enumerate(("a", "b", "c", "pissa")):
        told = {"init_lora_weights": "pissa"} if name == "pissa" else {}
        folder(tmp_path / name, tensors(seed, shapes={q: weights[f"{q}.weight"].shape}), **told)
    save_model(tmp_path / "M", weights)
    save_model(tmp_path / "T", {key: 1.5 * each for key, each in weights.items()})
    bare(tmp_path / "gate.safetensors", {q: np.ones(len(weights[f"{q}.weight"]))})
    (tmp_path / "names.safetensors").write_text("model.layers layers\n")
    (tmp_path / "recipe.safetensors").write_text("sources: [a, b]\n")
    (tmp_path / "texts.safetensors").write_text(json.dumps({"a": "a", "b": "b"}))
    vectors = {"query": [1.0, 1.0], "a": [1.0, 0.0], "b": [0.0, 1.0]}
    bare(tmp_path / "vectors.safetensors", vectors)
    bare(tmp_path / "rows.safetensors", {"x": [1.0, 0.0]})
    return tmp_path


TWO = ("combine", "a", "b")
SG = (*TWO, "--method", "sg", "--describe", "query", "--descriptions", "texts.safetensors")
CASES = {  # command without its output, outputs that are refused
    "base": ((*TWO, "--base", "M"), ("M", "M/o", "M/o.safetensors", "M/model.safetensors")),
    "base through a link": ((*TWO, "--base", "M"), ("link", "link/o")),
    "base of convert": (("convert", "a", "--to", "peft", "--base", "M"), ("M", "M/o")),
    "base of resize": (("resize", "a", "--rank", "1", "--base", "M"), ("M", "M/o")),
    "base of route": (("route", "a", "b", "--base", "M"), ("M", "M/o")),
    "base of report": (("report", "a", "b", "--base", "M"), ("M/o.html",)),
    "heads_as_lora": ((*TWO, "--heads-as-lora", "M"), ("M", "M/o")),
    "project_out": ((*TWO, "--project-out", "c"), ("c", "c/o")),
    "initial": (("combine", "pissa", "--initial", "pissa=c"), ("c", "c/o")),
    "rename": ((*TWO, "--rename", "names.safetensors"), ("names.safetensors",)),
    "prompt_gate": ((*TWO, "--prompt-gate", "gate.safetensors"), ("gate.safetensors",)),
    "descriptions": ((*SG, "--embedding", "vectors.safetensors"), ("texts.safetensors",)),
    "embedding": ((*SG, "--embedding", "vectors.safetensors"), ("vectors.safetensors",)),
    "recipe": (("combine", "--recipe", "recipe.safetensors"), ("recipe.safetensors",)),
    "fuse": (("fuse", "a", "M"), ("M", "M/o", "a/o")),
    "whole_model": ((*TWO, "--fuse", "M"), ("M", "M/o", "a/o")),
    "extract": (("extract", "T", "M"), ("M", "M/o", "T/o", "T")),
    "subtract": (("route", "a", "b", "--subtract", "c"), ("c", "c/o")),
    "sources": (("route", "a", "b"), ("a", "b/o")),
}


def outputs(command, out):
    return (command[0], command[1], out, *command[2:]) if command[0] == "convert" else (*command, "-o", out)


@pytest.mark.parametrize(("command", "out"), [(c, out) for c, outs in CASES.values() for out in outs])
def test_no_command_writes_over_what_it_reads(here, cli, command, out):
    if command[0] == "report":
        pytest.importorskip("altair")
    (here / "link").symlink_to("M")
    before = content(here)
    cli(*outputs(command, out), "--overwrite")
    assert "which is" in cli.err
    assert cli.code in (1, 2)
    assert content(here) == before


def test_every_field_that_names_a_file_is_tried():
    files = {
        name for name, each in FIELDS.items() if isinstance(each.kind, Renames) or hasattr(each.kind, "path")
    }
    texts = {name for name in files if getattr(FIELDS[name].kind, "path", True) is False}
    assert files - texts - {"names"} <= {name.partition(" ")[0] for name in CASES}
    assert "initial" in CASES


def test_records_masks_inputs_and_rows_are_kept_too(here, cli):
    cli("combine", "a", "b", "--method", "mergevla", "-o", "m")
    cli("combine", "a", "b", "-o", "m.safetensors")
    np.savez(here / "x.npz", **{"model.layers.0.self_attn.q_proj": np.ones((2, 16))})
    before = content(here)
    for command in (
        ("replay", "m/loramerge.json", "-o", "m"),
        ("replay", "m", "-o", "m/x"),
        ("replay", "m.safetensors", "-o", "m.safetensors"),
        ("restore", "m", "--task", "a", "-o", "m/x"),
        ("restore", "m", "--inputs", "x.npz", "-o", "x.npz"),
        ("route", "a", "b", "--gate", "table", "--table", "rows.safetensors", "-o", "rows.safetensors"),
        ("combine", "a", "b", "--base", "M", "-o", "x", "--report", "M/page.html"),
        ("combine", "a", "b", "--base", "M", "--method", "average", "-o", "x", "--spread", "M/s.safetensors"),
        ("combine", "a", "b", "--base", "M", "-o", "M/x", "--dry-run"),
        ("combine", "a", "b", "--base", "M", "-o", "M/x.safetensors", "--dense-delta"),
    ):
        cli(*command, "--overwrite")
        assert cli.code in (1, 2), command
        assert content(here) == before, command


def test_what_was_made_may_be_read_and_its_neighbours_written(here):
    merge = lm.combine(["a", "b"], base="M", out="x")
    lm.combine(["x", "a"], base="M", out="y")
    merge.save("x", overwrite=True)
    with pytest.raises(OutputError, match="which is read"):
        merge.save("M/x")
    with pytest.raises(OutputError, match="which is read"):
        lm.open(["a", "b"], base="M").combine("linear").save("M/x")
