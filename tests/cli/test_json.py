"""What pipelines read: a schema, the facts of the output, the same in dry and real runs."""

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.algorithms import METHODS
from loramerge.cli import COMMANDS
from tests.helpers.files import bare, folder, tensors
from tests.helpers.models import random_model, save_model

FACTS = ("schema", "loramerge", "out", "method", "rank", "ranks", "dtype", "format", "bytes")


def test_a_merge_tells_the_facts_of_its_output_dry_or_real(cli, tmp_path):
    folder(tmp_path / "a", tensors(1))
    command = ("combine", "a", "a", "--method", "svd", "--json", "-o", "m")
    dry, real = (json.loads(cli(*command, *more).out) for more in (["--dry-run"], []))
    assert {key: dry[key] for key in FACTS} == {key: real[key] for key in FACTS}
    weights = (tmp_path / "m" / "adapter_model.safetensors").read_bytes()
    assert real["sha256"]["adapter_model.safetensors"] == hashlib.sha256(weights).hexdigest()
    for module in real["modules"]:
        assert module["cosines"] == pytest.approx([1, 1])


def test_methods_are_listed_with_their_options(cli):
    found = json.loads(cli("methods", "--json").out)
    assert found["schema"] == 1
    assert [each["name"] for each in found["methods"]] == list(METHODS)
    (ties,) = json.loads(cli("methods", "TIES", "--json").out)["methods"]
    assert {"density", "rank"} <= {option["name"] for option in ties["options"]}


def test_a_dry_run_has_the_keys_of_a_real_one(cli, tmp_path):
    for name in "ab":
        folder(tmp_path / name, tensors(ord(name)))
    for method in ("linear", "svd", "ties"):
        command = ("combine", "a", "b", "--method", method, "--json", "--overwrite")
        dry, real = (json.loads(cli(*command, *more).out) for more in (["--dry-run"], []))
        assert dry.keys() == real.keys()
        assert (dry["dry_run"], real["dry_run"]) == (True, False)
        assert [each["name"] for each in dry["modules"]] == [each["name"] for each in real["modules"]]
        assert dry["sources"][0].keys() == real["sources"][0].keys()
        assert dry["modules"][0].keys() == real["modules"][0].keys()
        assert dry["modules"][0]["ranks"] == real["modules"][0]["ranks"]


PRINTED = {  # command -> what prints it
    "combine": ("combine", "a", "b", "--method", "ties", "--scale", "norm", "-o", "x"),
    "resize": ("resize", "a", "--rank", "1"),
    "replay": ("replay", "m", "--source", "."),
    "restore": ("restore", "masked", "--task", "a"),
    "diff": ("diff", "a", "b"),
    "inspect": ("inspect", "a", "odd.safetensors"),
    "check": ("check", "a"),
    "convert": ("convert", "a", "c", "--to", "mlx"),
    "extract": ("extract", "tuned", "base"),
    "fuse": ("fuse", "q", "base"),
    "methods": ("methods",),
    "route": ("route", "a", "b"),
    "report": ("report", "a", "b"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    here = tmp_path_factory.mktemp("json")
    for name in "ab":
        folder(here / name, tensors(ord(name)))
    update = lm.LowRank(np.ones((16, 1)), np.ones((1, 16)))
    lm.save(lm.Adapter.of({"model.layers.0.self_attn.q_proj": update}), here / "q")
    bare(here / "odd.safetensors", {"x": np.ones(2)})
    before, changed = random_model(), "model.layers.0.self_attn.q_proj.weight"
    save_model(here / "base", before)
    save_model(here / "tuned", {**before, changed: before[changed] + 1})
    lm.combine([here / "a", here / "b"], out=here / "m")
    lm.combine([here / "a", here / "b"], "mergevla", out=here / "masked")
    return here


def keys():
    file = Path(__file__).resolve().parents[2] / "docs" / "keys.py"
    loaded = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("keys", file))
    spec.loader.exec_module(loaded)
    return loaded


def test_every_command_prints_json_and_has_its_keys_told():
    assert keys().KEYS.keys() == COMMANDS.keys()
    assert PRINTED.keys() == COMMANDS.keys() - {"push"}, "tests/hub speaks of push"


@pytest.mark.parametrize("command", PRINTED)
def test_the_keys_are_those_that_are_told(command, cli, place, monkeypatch):
    if command == "report":
        pytest.importorskip("altair")
    monkeypatch.chdir(place)
    cli(*PRINTED[command], "--json")
    found = json.loads(cli.out)
    assert list(found)[:2] == ["schema", "loramerge"]
    del found["schema"], found["loramerge"]
    assert found
    table = keys()
    assert table.odd(found, table.KEYS[command]) == []
