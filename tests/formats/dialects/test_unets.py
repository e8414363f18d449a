"""Adapters of U-Nets: inspect names their model, and what is for another is not merged unasked."""

import pytest

import loramerge as lm
from tests.helpers.dialects import pairs, saved

DOWN = "lora_unet_down_blocks_{}_attentions_0_transformer_blocks_{}_{}"
LOW = {DOWN.format(0, 0, "attn1_to_q"): (320, 320)}
FILES = {  # name -> (modules, the model, metadata)
    "one": (LOW | {DOWN.format(1, 0, "attn2_to_k"): (640, 768)}, "Stable Diffusion 1", None),
    "two": ({DOWN.format(2, 0, "attn2_to_v"): (1280, 1024)}, "Stable Diffusion 2", None),
    "low": (LOW, "Stable Diffusion 1 or Stable Diffusion 2, the tensors do not tell", None),
    "said": (LOW, "Stable Diffusion 2", {"ss_base_model_version": "sd_v2"}),
    "large": ({DOWN.format(2, 3, "attn2_to_k"): (1280, 2048)}, "Stable Diffusion XL", None),
    "deep": ({DOWN.format(2, 9, "attn1_to_k"): (1280, 1280)}, "Stable Diffusion XL", None),
    "refiner": ({DOWN.format(2, 3, "attn2_to_k"): (1536, 1280)}, "Stable Diffusion XL's refiner", None),
    "untold": ({DOWN.format(1, 0, "attn1_to_q"): (640, 640)}, "", None),
    "text": ({"lora_te_text_model_encoder_layers_0_self_attn_q_proj": (768, 768)}, "", None),
    "second": ({"lora_te2_text_model_encoder_layers_0_self_attn_q_proj": (1280, 1280)}, "", None),
}


def file(tmp_path, name):
    shapes, _, metadata = FILES[name]
    return saved(tmp_path / f"{name}.safetensors", pairs(shapes, rank=1), metadata)


@pytest.mark.parametrize("name", FILES)
def test_inspect_names_the_model(name, tmp_path):
    found, model = lm.inspect(file(tmp_path, name)), FILES[name][1]
    assert (f"for {model}," in str(found)) if model else ("not named" in str(found))
    assert found.to_dict().get("model", "") == model


APART = ["one large", "low large", "one said", "low deep", "one second", "two text", "large refiner"]


@pytest.mark.parametrize("names", APART)
def test_two_models_are_not_mixed_unasked(names, tmp_path):
    for order in (names.split(), names.split()[::-1]):
        with pytest.raises(lm.IncompatibleError, match=r"Stable Diffusion|different base models"):
            lm.combine([file(tmp_path, name) for name in order], "cat")


@pytest.mark.parametrize(
    "names", ["one low", "low said", "large second", "one text", "large untold", "low untold"]
)
def test_what_can_be_one_model_is_merged(names, tmp_path):
    assert lm.combine([file(tmp_path, name) for name in names.split()], "cat").adapter


def test_the_names_of_an_unknown_unet_tell_no_model(tmp_path):
    """A video model has Stable Diffusion's blocks, and others beside."""
    stem = "unet.down_blocks.0.attentions.0.{}.0.attn2.to_k"
    shapes = {
        stem.format(each): (320, 1024) for each in ("transformer_blocks", "temporal_transformer_blocks")
    }
    path = saved(tmp_path / "a.safetensors", pairs(shapes, ("lora_A", "lora_B")))
    assert "model" not in lm.inspect(path).to_dict()
