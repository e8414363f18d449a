"""What training wraps around modules is no part of their names, wherever it stands."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import loramerge as lm
from loramerge.errors import SourceError
from loramerge.formats.wrappers import plain
from tests.helpers.adapters import random_adapters

SHAPES = {"model.layers.0.mlp.down_proj": (7, 9), "model.layers.1.mlp.down_proj": (7, 9)}
LAYERS = "base_model.model.model.layers."
WRAPPED = {  # a key as training left it, of PEFT's names
    "torch.compile": lambda key: f"_orig_mod.{key}",
    "torch.compile inside": lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
    "torch.compile of layers": lambda key: key.replace(".mlp", "._orig_mod.mlp"),
    "FSDP": lambda key: f"_fsdp_wrapped_module.{key}".replace("layers.0", "layers.0._fsdp_wrapped_module"),
    "checkpointing": lambda key: key.replace(".mlp", "._checkpoint_wrapped_module.mlp"),
    "Lightning": lambda key: f"_forward_module.{key}",
    "DDP": lambda key: f"module.{key}",
    "DDP twice": lambda key: f"module.module.{key}",
    "DDP inside": lambda key: key.replace("base_model.model.", "base_model.model.module."),
    "Lightning's module": lambda key: f"model.{key}",
    "TRL with a value head": lambda key: f"pretrained_model.{key}",
    "PEFT twice": lambda key: f"base_model.model.{key}",
    "several": lambda key: f"module._orig_mod.base_model.model._fsdp_wrapped_module.{key}",
    "a model around a layer": lambda key: key.replace(".mlp", "._wrapped_model.mlp"),
    "hooks": lambda key: key.replace(".mlp", "._hf_hook.mlp"),
    "one that is not known yet": lambda key: f"_shiny_module.{key}",
}


@pytest.fixture
def pair(tmp_path):
    """Two adapters in folders."""
    places = [tmp_path / name for name in "ab"]
    for place, adapter in zip(places, random_adapters(0, (2, 2), SHAPES), strict=True):
        lm.save(adapter, place)
        config = json.loads((place / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "meta-llama/Llama-2-7b-hf"
        (place / "adapter_config.json").write_text(json.dumps(config))
    return places


def respelt(folder, change):
    place = folder.with_name("wrapped")
    shutil.copytree(folder, place)
    path = place / "adapter_model.safetensors"
    save_file({change(key): array for key, array in load_file(path).items()}, path)
    return place


# A kind from the wild: A1, wrappers of training.
@pytest.mark.parametrize("change", WRAPPED.values(), ids=WRAPPED)
def test_wrapped_names_are_those_of_the_model(pair, change, tmp_path):
    wanted = lm.combine(pair, "linear").adapter
    good = lm.load(pair[1])
    bad = respelt(pair[1], change)
    merge = lm.combine([pair[0], bad], "linear")
    assert lm.diff(wanted, merge.adapter).error == 0
    assert any("wraps around modules" in note for note in merge.report.notes)
    done = lm.convert(bad, tmp_path / "plain", "peft")
    assert not done.copied
    assert all(key.startswith(LAYERS) for key in load_file(tmp_path / "plain" / "adapter_model.safetensors"))
    assert lm.diff(good, tmp_path / "plain").error == 0


@pytest.mark.parametrize("consumer", ["peft", "transformers", "vllm", "sglang", "llama.cpp"])
@pytest.mark.parametrize("change", WRAPPED.values(), ids=WRAPPED)
def test_nobody_finds_wrapped_names(pair, change, consumer):
    assert lm.check(pair[1], consumer) == []
    found = lm.check(respelt(pair[1], change), consumer)
    assert any("wraps around modules" in finding.sentence for finding in found)
    assert all("loramerge" in finding.command for finding in found)


@pytest.mark.parametrize("part", ["unet", "transformer", "text_encoder", "text_encoder_2"])
def test_pefts_prefix_in_a_part_of_a_pipeline_is_none_and_the_part_stays(part, tmp_path):
    state = {f"{part}.mid_block.q.lora_A.weight": np.ones((1, 3), "f4")}
    state |= {f"{part}.mid_block.q.lora_B.weight": np.ones((2, 1), "f4")}
    places = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_file(state, places[0])
    nested = {key.replace(f"{part}.", f"{part}.base_model.model."): value for key, value in state.items()}
    save_file(nested, places[1])
    assert lm.diff(*places).error == 0
    assert [str(target) for target in lm.combine(places, "linear").adapter] == [f"{part}.mid_block.q"]


def test_patterns_of_a_config_lose_them_too(pair):
    config = json.loads((pair[0] / "adapter_config.json").read_text())
    config |= {"alpha_pattern": {"_orig_mod.model.layers.0.mlp.down_proj": 6}}
    wanted = json.dumps(config | {"alpha_pattern": {"model.layers.0.mlp.down_proj": 6}})
    (pair[0] / "adapter_config.json").write_text(wanted)
    good = {str(target): update.dense() for target, update in lm.load(pair[0]).items()}
    (pair[0] / "adapter_config.json").write_text(json.dumps(config))
    bad = lm.load(respelt(pair[0], WRAPPED["torch.compile inside"]))
    for target, update in bad.items():
        np.testing.assert_array_equal(update.dense(), good[str(target)])


def test_a_state_dict_of_a_compiled_model_is_read():
    state = {"_orig_mod.base_model.model.q.lora_A.weight": np.ones((1, 3))}
    state["_orig_mod.base_model.model.q.lora_B.weight"] = np.ones((2, 1))
    assert [target.path for target in lm.from_state_dict(state, alpha=1)] == ["q"]


def test_a_module_with_and_without_a_wrapper_is_refused(pair):
    path = pair[0] / "adapter_model.safetensors"
    state = load_file(path)
    save_file(state | {f"module.{key}": array for key, array in state.items()}, path)
    with pytest.raises(SourceError, match="twice, once in a wrapper"):
        lm.load(pair[0])


def test_names_of_other_tools_lose_them_too():
    assert plain("lora_unet__orig_mod_down_blocks_0.alpha") == "lora_unet_down_blocks_0.alpha"
    assert plain("transformer._orig_mod.blocks.0.q.lora_A.weight") == "transformer.blocks.0.q.lora_A.weight"


@pytest.mark.parametrize("key", ["levit.encoder.stages.0.layers.0.module.attention.x", "model.my_module.q"])
def test_modules_of_such_names_stay(key):
    assert plain(key) == key


HOLDERS = """
base_model.model.diffusion_model. model.diffusion_model. dit. net. module. pipe.dit. model. net.model.
pipe.transformer. base_model.model.transformer. base_model.model.dit.
""".split()
IMAGE = {
    "wan": "blocks.0.self_attn.q blocks.1.cross_attn.k",
    "qwen-image": "transformer_blocks.0.attn.to_q transformer_blocks.1.img_mlp.net.2",
    "z-image": "layers.0.attention.to_q noise_refiner.0.attention.to_k",
    "flux.1": "double_blocks.0.img_attn.proj single_blocks.1.linear2",
}


def image(path, holder, names, seed):
    rng, state = np.random.default_rng(seed), {}
    for name in names.split():
        ins = {"img_mlp.net.2": 24, "linear2": 30}.get(name.split(".", 2)[-1], 6)
        state |= {f"{holder}{name}.lora_A.weight": rng.standard_normal((2, ins)).astype("f4")}
        state |= {f"{holder}{name}.lora_B.weight": rng.standard_normal((6, 2)).astype("f4")}
    save_file(state, path)
    return path


# A kind from the wild: A1, what holds an image model while it is trained.
@pytest.mark.parametrize("names", IMAGE.values(), ids=IMAGE)
@pytest.mark.parametrize("holder", HOLDERS)
def test_what_holds_an_image_model_is_no_part_of_its_names(holder, names, tmp_path):
    plainly = [image(tmp_path / f"{seed}.safetensors", "diffusion_model.", names, seed) for seed in (0, 1)]
    held = image(tmp_path / "held.safetensors", holder, names, 1)
    told = {"alpha": {"held.safetensors": 2}} if holder == "base_model.model.dit." else {}  # PEFT's names
    first = lm.combine(plainly, "linear", format="comfy").adapter
    second = lm.combine([plainly[0], held], "linear", format="comfy", **told).adapter
    assert len(second) == len(names.split())
    assert lm.diff(first, second).error < 1e-6


@pytest.mark.parametrize("holder", ["dit.", "model.", "net.", "base_model.model.transformer."])
@pytest.mark.parametrize(
    "name", ["layers.0.self_attn.q_proj", "layers.0.feed_forward.w1", "blocks.0.attn.qkv"]
)
def test_names_that_language_models_have_keep_what_stands_before_them(holder, name, tmp_path):
    found = lm.load(image(tmp_path / "a.safetensors", holder, name, 0), alpha=2)
    assert [target.path for target in found] == [f"{holder.removeprefix('base_model.model.')}{name}"]
    assert not any("wraps" in note for note in found.oddities)
