"""ComfyUI is no package that can be run here: its rules for names and strength, as we read them."""

import numpy as np
import pytest
from safetensors.numpy import load_file

import loramerge as lm
from tests.helpers.dialects import pairs, saved, updates

OWN = ("lora_A", "lora_B")
T5 = "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"
FLUX = {
    **{f"transformer.transformer_blocks.0.attn.to_{x}": (8, 8) for x in "qkv"},
    "transformer.single_transformer_blocks.0.proj_out": (8, 40),
    T5: (8, 6),
}
Q = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"


SD = {  # module -> (its shape, what it is called in each format)
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (
        (16, 16),
        {"kohya": Q, "comfy": "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q"},
    ),
    "unet.down_blocks.0.resnets.0.conv1": (
        (8, 4, 3, 3),
        {
            "kohya": "lora_unet_down_blocks_0_resnets_0_conv1",
            "comfy": "diffusion_model.input_blocks.1.0.in_layers.2",
        },
    ),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": (
        (8, 6),
        {
            "kohya": "lora_te_text_model_encoder_layers_0_mlp_fc1",
            "comfy": "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
        },
    ),
}


def read(file):
    """Module -> alpha / rank · up @ down, and up @ down where there is no alpha: in either spelling."""
    tensors = load_file(file)
    return updates(tensors) | updates(tensors, OWN)


@pytest.mark.parametrize("format", ["kohya", "comfy"])
def test_a_merge_for_it_acts_by_its_rule_as_it_is_meant(format, tmp_path):
    """Whatever ranks and alphas the sources have."""
    own = {module: shape for module, (shape, _) in SD.items()}
    kohya = {names["kohya"]: shape for shape, names in SD.values()}
    first = pairs(own, OWN, rank=2)
    second = pairs(kohya, rank=3, alpha=1.5) | pairs({Q: (16, 16)}, rank=4, alpha=5.0, seed=1)
    sources = [saved(tmp_path / "a.safetensors", first), saved(tmp_path / "b.safetensors", second)]
    lm.combine(sources, weights=[0.7, -0.3], format=format, out=tmp_path / "m.safetensors")
    assert not lm.check(tmp_path / "m.safetensors", "comfyui")
    found = read(tmp_path / "m.safetensors")
    assert set(found) == {names[format] for _, names in SD.values()}
    for module, (_, names) in SD.items():
        wanted = 0.7 * updates(first, OWN)[module] - 0.3 * updates(second)[names["kohya"]]
        np.testing.assert_allclose(found[names[format]], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("kohya", "lora_unet_double_blocks_0_img_attn_qkv"),
        ("comfy", "diffusion_model.double_blocks.0.img_attn.qkv"),
    ],
)
def test_q_k_and_v_of_flux_are_rows_of_one_module(format, name, tmp_path):
    state = pairs(FLUX, OWN)
    file = saved(tmp_path / "a.safetensors", state)
    lm.convert(file, tmp_path / "m.safetensors", format)
    parts = [updates(state, OWN)[f"transformer.transformer_blocks.0.attn.to_{x}"] for x in "qkv"]
    np.testing.assert_allclose(read(tmp_path / "m.safetensors")[name], np.concatenate(parts), rtol=1e-5)


def test_it_passes_over_t5_under_the_names_of_diffusers(tmp_path):
    file = saved(tmp_path / "a.safetensors", pairs(FLUX, OWN))
    (finding,) = lm.check(file, "comfyui")
    assert finding.effect == "ignores"
    assert T5 in finding.sentence
    assert "--for comfyui" in finding.command
    lm.convert(file, tmp_path / "k.safetensors", "kohya")
    assert not lm.check(tmp_path / "k.safetensors", "comfyui")
    assert "lora_te3_encoder_block_0_layer_0_SelfAttention_q" in read(tmp_path / "k.safetensors")


def test_an_alpha_of_zero_is_no_strength_to_it_and_the_rank_to_kohya(tmp_path):
    file = saved(tmp_path / "a.safetensors", pairs({Q: (16, 16)}, alpha=0.0))
    (finding,) = lm.check(file, "comfyui")
    assert finding.effect == "scales"
    assert "takes an alpha of 0 as no strength" in finding.sentence
    out = tmp_path / "m.safetensors"
    (update,) = lm.combine([file], consumer="comfyui", out=out).adapter.values()
    assert not lm.check(out, "comfyui")
    np.testing.assert_allclose(read(out)[Q], update.dense(), rtol=1e-5)
    np.testing.assert_allclose(update.dense(), next(iter(lm.load(file).values())).dense(), rtol=1e-5)
    assert np.abs(update.dense()).max() > 0
