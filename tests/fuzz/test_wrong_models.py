"""What describes a model or a table, with every wrong value in each field: a sentence, never a bug."""

import json
import shutil
from pathlib import Path

import pytest

import loramerge as lm
from loramerge.checkpoints.open import open_checkpoint
from loramerge.errors import SourceError
from loramerge.routing.rows import read_rows
from tests.fuzz.walk import FEW, WRONG, Outcomes, paths, put
from tests.helpers.files import folder, tensors
from tests.helpers.models import CONFIG, random_model, save_model

MANY = pytest.mark.parametrize(
    "wrong", [FEW, pytest.param(WRONG, marks=pytest.mark.slow)], ids=["few", "all"]
)
Q = "model.layers.0.self_attn.q_proj"
RICH = {
    **CONFIG,
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 24,
    "torch_dtype": "float32",
    "tie_word_embeddings": True,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "bits": 4},
    "text_config": {"num_hidden_layers": 2, "tie_word_embeddings": False, "hidden_size": 16},
    "auto_map": {"AutoModel": "x--y.Z"},
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D"],
    "cross_attention_dim": 16,
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "base", random_model(0), RICH, shards=2)
    save_model(tmp_path / "tuned", random_model(1), RICH, shards=2)
    folder(tmp_path / "a", tensors(0, shapes={Q: (16, 16)}))
    return tmp_path


ACTS = {
    "fuse": lambda: lm.fuse("a", "base", "f", overwrite=True),
    "extract": lambda: lm.extract("tuned", "base", "x", rank=1, extras="drop", overwrite=True),
    "extract from": lambda: lm.extract("base", "tuned", "x", rank=1, extras="drop", overwrite=True),
    "load": lambda: lm.load("base/adapter"),
    "check": lambda: [lm.check("base/adapter", name) for name in ("peft", "mlx", "vllm")],
}


@MANY
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_model(here, name, wrong):
    """Also where an adapter lies in the model's own folder, or beside its config."""
    folder(here / "base/adapter", tensors(1, shapes={Q: (16, 16)}))
    place, found = here / "base" / name, Outcomes()
    said = json.loads(place.read_text())
    for act in ACTS.values():
        found.of(act, "as it was")
    assert found.count["fine"] == len(ACTS)
    for turn, path in enumerate(paths(said)):
        for step, value in enumerate(wrong):
            text = json.dumps(put(said, path, value))
            place.write_text(text)
            acts = ACTS if wrong is WRONG else [list(ACTS)[(turn + step) % len(ACTS)]]
            for told in acts:
                found.of(ACTS[told], (told, path, value))
    found.check()


OUTSIDE = ["../other", "../pipe/unet", "unet/../../other", ".", "..", "", "unet/", "./unet", "/"]


@pytest.mark.parametrize("name", [*OUTSIDE, "\0", "a" * 300], ids=ascii)
def test_a_pipeline_names_no_folder_elsewhere(here, name):
    """It would be written to, too: `fuse` gives OUT the same folders."""
    (here / "pipe").mkdir()
    shutil.move(here / "base", here / "pipe/unet")
    shutil.copytree(here / "tuned", here / "other")
    (here / "pipe/model_index.json").write_text(json.dumps({"unet": [], name: ["a", "b"]}))
    if name in OUTSIDE:
        with pytest.raises(SourceError, match=r"which is no folder in it"):
            open_checkpoint(here / "pipe")
    else:  # there is no such folder, as of parts without weights
        assert [*open_checkpoint(here / "pipe").models] == ["unet"]


def route():
    lm.route(["a", "b"], "table", rows=read_rows(Path("rows.json")), out="r", overwrite=True)


def chosen(**more):
    lm.combine(["a", "b"], "sg", describe="Counts.", **more)


SAID = {"a": "Writes.", "b": "Counts."}
ROWS = {"a": [0.5, 1], "b": [1, 0]}
TABLES = {
    "rows.json": (ROWS, route),
    "vectors.json": (
        {"Counts.": [1, 0], **ROWS},
        lambda: chosen(embedding="vectors.json", descriptions=SAID),
    ),
    "descriptions.json": (SAID, chosen),
    "said.json": (SAID, lambda: chosen(descriptions="said.json")),
    "lone.json": (
        {"peft_type": "LORA", "lora_alpha": 2, "r": 2, "rank_pattern": {}},
        lambda: lm.combine(["lone.safetensors"], "svd", rank=1),
    ),
}


@MANY
@pytest.mark.parametrize("name", TABLES)
def test_a_table(here, name, wrong):
    said, act = TABLES[name]
    folder(here / "b", tensors(2, shapes={Q: (16, 16)}))
    shutil.copy(here / "a/adapter_model.safetensors", here / "lone.safetensors")
    place, found = here / name, Outcomes()
    place.write_text(json.dumps(said))
    found.of(act, "as it was")
    assert found.count["fine"], "what is right is read"
    for path in paths(said):
        for value in wrong:
            place.write_text(json.dumps(put(said, path, value) if path else value))
            found.of(act, (path, value))
    found.check()


@MANY
def test_an_index_of_shards(here, wrong):
    """Of an adapter."""
    shutil.copy(here / "a/adapter_model.safetensors", here / "a/adapter_model-00001-of-00001.safetensors")
    (here / "a/adapter_model.safetensors").unlink()
    keys = [f"base_model.model.{Q}.lora_{side}.weight" for side in "AB"]
    said = {
        "metadata": {"total_size": 3},
        "weight_map": dict.fromkeys(keys, "adapter_model-00001-of-00001.safetensors"),
    }
    place, found = here / "a/adapter_model.safetensors.index.json", Outcomes()
    for path in [None, *paths(said)]:
        for value in wrong:
            place.write_text(json.dumps(said if path is None else put(said, path, value) if path else value))
            found.of(lambda: lm.combine(["a"], "svd", rank=1), (path, value))
            found.of(lambda: lm.inspect("a").to_dict(), (path, value))
    assert found.count["fine"]
    found.check()
