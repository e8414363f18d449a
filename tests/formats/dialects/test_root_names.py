"""Names that begin with `transformer.`: of diffusers, of HunyuanVideo's authors, of language models."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import loramerge as lm

AUTHORS = {  # HunyuanVideo's modules as diffusion-pipe calls them -> as ComfyUI does
    "double_blocks.0.img_attn_qkv": ("double_blocks.0.img_attn.qkv", 24, 8),
    "double_blocks.0.img_attn_proj": ("double_blocks.0.img_attn.proj", 8, 8),
    "double_blocks.0.img_mlp.fc1": ("double_blocks.0.img_mlp.0", 32, 8),
    "double_blocks.0.img_mlp.fc2": ("double_blocks.0.img_mlp.2", 8, 32),
    "double_blocks.0.img_mod.linear": ("double_blocks.0.img_mod.lin", 48, 8),
    "double_blocks.0.txt_attn_qkv": ("double_blocks.0.txt_attn.qkv", 24, 8),
    "single_blocks.0.linear1": ("single_blocks.0.linear1", 56, 8),
    "single_blocks.0.linear2": ("single_blocks.0.linear2", 8, 40),
    "single_blocks.0.modulation.linear": ("single_blocks.0.modulation.lin", 24, 8),
}
OTHERS = """
transformer.layers.0.1.fn.fn.net.0 transformer.encoder.layers.0.self_attention.dense transformer.h.0.mlp.fc_in
transformer.encoder.layer.0.attention.self.query transformer.blocks.0.attn.Wqkv transformer.word_embeddings
transformer.resblocks.0.attn.out_proj transformer.layer.0.ffn.lin1 transformer.output_layer
"""


def written(path, sizes):
    rng, state = np.random.default_rng(0), {}
    for stem, (outs, ins) in sizes.items():
        state[f"{stem}.lora_A.weight"] = rng.standard_normal((2, ins)).astype("f4")
        state[f"{stem}.lora_B.weight"] = rng.standard_normal((outs, 2)).astype("f4")
    save_file(state, path)
    return path


# A kind from the wild: A8, half of a file for ComfyUI.
@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model."])
def test_all_of_hunyuan_video_is_written_for_comfyui(prefix, tmp_path):
    source = written(
        tmp_path / "a.safetensors", {f"{prefix}{name}": size for name, (_, *size) in AUTHORS.items()}
    )
    lm.combine([source], "linear", consumer="comfyui", format="comfy", out=tmp_path / "m.safetensors")
    made = lm.load(tmp_path / "m.safetensors")
    keys = {key.partition(".lora_")[0] for key in load_file(tmp_path / "m.safetensors")}
    assert keys == {f"diffusion_model.{name}" for name, *_ in AUTHORS.values()}
    assert lm.diff(source, made).error < 1e-6
    assert not any("diffusion_model" in finding.sentence for finding in lm.check(source, "comfyui"))


# A kind from the wild: A8, a root `transformer.` alone.
@pytest.mark.parametrize("stem", OTHERS.split())
def test_language_and_vision_models_are_none_of_diffusers(stem, tmp_path):
    source = written(tmp_path / "a.safetensors", {stem: (6, 6)})
    with pytest.raises(lm.IncompatibleError, match="alpha"):
        lm.load(source)
    found = lm.load(source, alpha=4)
    assert [(target.component, target.path) for target in found] == [("model", stem)]
    assert [update.scale for update in found.values()] == [2]
    assert any("finds nothing to load" in finding.sentence for finding in lm.check(source, "diffusers"))
