"""Whole models of the Hub: what is needed of a repository is brought here, and nothing else."""

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import SourceError
from tests.helpers.files import folder
from tests.helpers.models import random_model, read_model, save_model
from tests.hub.loopback import files_of

Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def models(hub, tmp_path):
    """A base in shards and a tuned model in one file, there; what the base holds."""
    before = random_model()
    after = {
        **before,
        f"{Q}.weight": before[f"{Q}.weight"] + np.outer(np.arange(16), np.ones(16)).astype("f4"),
    }
    base = files_of(save_model(tmp_path / "base", before, shards=2))
    more = {
        "pytorch_model.bin": b"x",
        "model.fp16.safetensors": b"x",
        "onnx/model.onnx": b"x",
        "README.md": b"#",
    }
    hub.add("org/base", {**base, **more})
    hub.add("org/tuned", files_of(save_model(tmp_path / "tuned", after)))
    return before, after


def test_an_adapter_is_extracted_from_models_of_the_hub_and_names_its_base(hub, models, tmp_path):
    before, after = models
    lm.extract("org/tuned", "org/base", tmp_path / "a", rank=1)
    found = lm.load(tmp_path / "a")
    assert found.base.name == "org/base"
    wanted = after[f"{Q}.weight"] - before[f"{Q}.weight"]
    assert np.allclose(found[lm.Target(Q)].dense(), wanted, atol=1e-5)
    fetched = {each.path.rpartition("/")[2] for each in hub.asked}
    assert not fetched & {"pytorch_model.bin", "model.fp16.safetensors", "model.onnx"}


def test_an_adapter_is_fused_into_a_model_of_the_hub(hub, models, tmp_path):
    _, after = models
    lm.extract("org/tuned", "org/base", tmp_path / "a", rank=1)
    lm.fuse(tmp_path / "a", "org/base", tmp_path / "f")
    found = read_model(tmp_path / "f")
    assert all(np.allclose(found[key], after[key], atol=1e-5) for key in after)
    names = {path.name for path in (tmp_path / "f").iterdir()}
    assert names == {
        "config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }


def test_a_repository_without_a_model_is_refused(hub, tmp_path):
    hub.add("org/empty", {"README.md": b"#"})
    with pytest.raises(SourceError, match=r"has no model in \.safetensors"):
        lm.extract("org/empty", "org/empty", tmp_path / "a")


@pytest.mark.parametrize("kind", ["VERA", "HIRA"])
def test_of_a_base_on_the_hub_only_what_a_form_needs_is_read(hub, models, tmp_path, kind):
    before, _ = models
    stem, rng = f"base_model.model.{Q}", np.random.default_rng(0)
    a, b = rng.standard_normal((2, 16)).astype("f4"), rng.standard_normal((16, 2)).astype("f4")
    if kind == "VERA":
        ones = {f"{stem}.vera_lambda_b": np.ones(16, "f4"), f"{stem}.vera_lambda_d": np.ones(2, "f4")}
        values, wanted = {"base_model.vera_A": a, "base_model.vera_B": b, **ones}, b @ a
    else:
        values = {f"{stem}.hira_A": a, f"{stem}.hira_B": b}
        wanted = before[f"{Q}.weight"] * (b @ a)
    folder(tmp_path / "a", values, peft_type=kind, r=2, lora_alpha=None)
    found = lm.load(tmp_path / "a", base="org/base")
    np.testing.assert_allclose(found[lm.Target(Q)].dense(), wanted, rtol=1e-5, atol=1e-6)
    shards = [each for each in hub.asked if each.path.endswith(".safetensors")]
    assert shards
    assert all(each.span for each in shards), "no shard was downloaded whole"
