"""Last blocks that differ: the modulation of Stable Diffusion 3 and of Mochi has another size there."""

import numpy as np
from safetensors.numpy import load_file

import loramerge as lm
from tests.helpers.dialects import pairs, saved

FIRST = "lora_unet_joint_blocks_0_context_block_adaLN_modulation_1"
LAST = "lora_unet_joint_blocks_23_context_block_adaLN_modulation_1"
ATTENTION = {"lora_unet_joint_blocks_0_x_block_attn_qkv": (24, 8)}


MOCHI = {
    "diffusion_model.blocks.0.mod_y": (16, 8),
    "diffusion_model.blocks.47.mod_y": (4, 8),
    "diffusion_model.blocks.47.attn.qkv_x": (24, 8),
}


def test_the_last_block_of_mochi_is_called_as_diffusers_has_it(tmp_path):
    """`norm1_context.linear_1`, of one part, where the other blocks have `linear`, of four."""
    path = saved(tmp_path / "a.safetensors", pairs(MOCHI, ("lora_A", "lora_B")))
    lm.convert(path, tmp_path / "b.safetensors", "diffusers")
    stems = {key.partition(".lora_")[0] for key in load_file(tmp_path / "b.safetensors")}
    context = "transformer.transformer_blocks.{}.norm1_context.{}"
    assert {context.format(0, "linear"), context.format(47, "linear_1")} < stems
    lm.convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", "comfy")
    assert lm.diff(path, tmp_path / "c.safetensors").largest < 1e-6


def test_the_modulation_of_the_last_block_is_turned_and_the_others_are_not(tmp_path):
    path = saved(tmp_path / "a.safetensors", pairs({FIRST: (48, 8), LAST: (16, 8)} | ATTENTION, alpha=2.0))
    lm.convert(path, tmp_path / "b.safetensors", "diffusers")
    lm.convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", "sd-scripts")
    mine, theirs, again = (load_file(tmp_path / f"{name}.safetensors") for name in "abc")

    def update(found, stem, ends=("lora_up", "lora_down")):
        return found[f"{stem}.{ends[0]}.weight"] @ found[f"{stem}.{ends[1]}.weight"]

    for stem, block in ((FIRST, 0), (LAST, 23)):
        wanted = update(mine, stem)
        name = f"transformer.transformer_blocks.{block}.norm1_context.linear"
        turned = np.concatenate([wanted[8:], wanted[:8]]) if block else wanted
        np.testing.assert_allclose(update(theirs, name, ("lora_B", "lora_A")), turned, atol=1e-5)
        rank = again[f"{stem}.lora_down.weight"].shape[0]
        np.testing.assert_allclose(update(again, stem) * again[f"{stem}.alpha"] / rank, wanted, atol=1e-5)
