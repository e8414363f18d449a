"""A model given as an adapter, or an adapter as a model, is refused with what makes one of the other."""

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapters.adapter import Held
from loramerge.adapters.whole import are_factors, are_weights, is_whole
from tests.helpers.files import Cli
from tests.helpers.models import random_model, save_model

TAKES = {
    "combine": lambda model, adapter, out: lm.combine([adapter, model], out=out),
    "load": lambda model, adapter, out: lm.load(model),
    "inspect": lambda model, adapter, out: lm.inspect(model),
    "convert": lambda model, adapter, out: lm.convert(model, out, "kohya"),
    "diff": lambda model, adapter, out: lm.diff(adapter, model),
    "resize": lambda model, adapter, out: lm.resize(model, out, rank=1),
    "fuse": lambda model, adapter, out: lm.fuse(model, model, out),
}
WANTS = {
    "extract, tuned": lambda model, adapter, out: lm.extract(adapter, model, out),
    "extract, base": lambda model, adapter, out: lm.extract(model, adapter, out),
    "fuse": lambda model, adapter, out: lm.fuse(adapter, adapter, out),
    "combine": lambda model, adapter, out: lm.combine([lm.Tuned(adapter, model)], out=out),
}


def model(tmp_path, kind):
    if kind == "pipeline":
        save_model(tmp_path / "m" / "unet", random_model())
        (tmp_path / "m" / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet"]}))
        return tmp_path / "m"
    made = save_model(tmp_path / "m", random_model(), shards=3 if kind == "shards" else 1)
    return made / "model.safetensors" if kind == "file" else made


def adapter(tmp_path, kind):
    rng = np.random.default_rng(0)
    update = lm.LowRank(rng.standard_normal((16, 2)), rng.standard_normal((2, 16)))
    made = lm.Adapter.of({f"model.layers.{i}.self_attn.q_proj": update for i in (0, 1)})
    out = tmp_path / {"folder": "a", "file": "a.safetensors", "diffusers": "d"}[kind]
    if kind == "diffusers":
        out.mkdir()
        lm.save(made, tmp_path / "a.safetensors", format="peft")
        (tmp_path / "a.safetensors").rename(out / "pytorch_lora_weights.safetensors")
        return out
    lm.save(made, out, format="peft")
    return out


@pytest.mark.parametrize("kind", ["one file", "shards", "pipeline", "file"])
def test_a_model_in_the_place_of_an_adapter_points_to_extract(tmp_path, kind):
    whole, beside = model(tmp_path, kind), adapter(tmp_path, "folder")
    for name, call in TAKES.items():
        if name == "inspect" and kind == "file":
            continue  # it shows what is in the file, and says why it cannot be merged
        with pytest.raises(lm.LoramergeError, match=r"extract\('.*m.*', base\) takes an adapter out") as told:
            call(whole, beside, tmp_path / "out")
        assert str(whole) in str(told.value), name
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["folder", "file", "diffusers"])
def test_an_adapter_in_the_place_of_a_model_points_to_fuse(tmp_path, kind):
    whole, small = model(tmp_path, "one file"), adapter(tmp_path, kind)
    for call in WANTS.values():
        with pytest.raises(
            lm.IncompatibleError, match=r"is an adapter, and a whole model .*fuse\('.*', base"
        ):
            call(whole, small, tmp_path / "out")


def test_the_command_says_it_as_a_command(tmp_path, capsys):
    whole, small = model(tmp_path, "shards"), adapter(tmp_path, "folder")
    cli = Cli(capsys)
    cli("combine", small, whole).refused(1, f"`loramerge extract {whole} BASE` takes an adapter out of it")
    cli("check", whole, "--for", "peft").refused(1, "takes an adapter out of it")
    cli("extract", small, whole).refused(3, f"`loramerge fuse {small} BASE -o MODEL`")


def test_adapters_that_are_called_as_models_are_still_many(tmp_path):
    update = lm.LowRank(np.ones((4, 1)), np.ones((1, 4)))
    for name in ("model-a", "model-b"):
        lm.save(lm.Adapter.of({"q_proj": update}), tmp_path / f"{name}.safetensors", format="peft")
    assert len(lm.combine([tmp_path], "linear").report.sources) == 2


@pytest.mark.parametrize(
    ("names", "whole"),
    [
        (["config.json", "model.safetensors"], True),
        (["config.json", "model.fp16.safetensors"], True),
        (["pytorch_model.bin.index.json"], True),
        (["model_index.json"], True),
        (["model.safetensors"], False),
        (["config.json", "adapter_model.safetensors"], False),
        (["config.json", "my-lora.safetensors"], False),
        ([], False),
    ],
)
def test_the_files_of_a_model(names, whole):
    assert is_whole(names) is whole


def test_weights_are_told_from_factors():
    square, row = Held(np.zeros((2, 2))), Held(np.zeros(2))
    assert are_weights({"a.weight": square, "b.weight": square, "norm.weight": row})
    assert not are_weights({"a.weight": square, "norm.weight": row})
    assert not are_weights({"a.weight": square, "b.weight": square, "b.lora_A.weight": square})
    assert are_factors(["q.lora_A.weight", "q.lora_B.weight", "score.weight"])
    assert are_factors(["lora_unet_x.lora_down.weight", "lora_unet_x.alpha", "lora_unet_x.lora_up.weight"])
    assert not are_factors(["q.weight", "k.weight", "layer_scale.lambda_1"])
    assert not are_factors([])
