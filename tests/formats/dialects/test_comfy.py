"""ComfyUI, OneTrainer and XLabs: the first names of a model's modules, fused and not."""

import numpy as np
import pytest

import loramerge as lm
from tests.helpers.dialects import normal, pairs, product, same, saved, updates

NEW = ("lora_A", "lora_B")
FLUX = {
    "diffusion_model.double_blocks.0.img_attn.qkv": "transformer.double_blocks.0.img_attn.qkv",
    "diffusion_model.double_blocks.0.txt_attn.proj": "transformer.transformer_blocks.0.attn.to_add_out",
    "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1": (
        "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    ),
    "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q": (
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"
    ),
}
SDXL = {
    "diffusion_model.input_blocks.4.1.transformer_blocks.1.attn2.to_k": (
        "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k"
    ),
    "diffusion_model.label_emb.0.0": "unet.add_embedding.linear_1",
    "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1": (
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"
    ),
}


def sizes(names):
    return {name: (12, 4) if name.endswith("qkv") else (4, 4) for name in names}


@pytest.mark.parametrize("names", [FLUX, SDXL], ids=["Flux", "SDXL"])
@pytest.mark.parametrize("alpha", [None, 1.0])
@pytest.mark.parametrize("spelling", [NEW, ("lora_down", "lora_up")], ids=["A, B", "down, up"])
def test_modules_are_read_by_their_first_names(tmp_path, names, alpha, spelling):
    tensors = pairs(sizes(names), spelling, alpha=alpha)
    adapter = lm.load(saved(tmp_path / "a.safetensors", tensors))

    same(adapter, {names[module]: update for module, update in updates(tensors, spelling).items()})
    assert any("as ComfyUI has it" in oddity for oddity in adapter.oddities) == (alpha is None)


def test_a_model_that_is_not_known_keeps_its_own_names_and_meets_kohya(tmp_path):
    comfy = saved(tmp_path / "c.safetensors", pairs({"diffusion_model.towers.0.attend.q": (4, 4)}, NEW))
    kohya = saved(tmp_path / "k.safetensors", pairs({"lora_unet_towers_0_attend_q": (4, 4)}, alpha=2.0))

    assert {str(t) for t in lm.load(comfy)} == {"unet.towers.0.attend.q"}
    merge = lm.combine([comfy, kohya], format="kohya", out=tmp_path / "m.safetensors")
    assert {str(t) for t in merge.adapter} == {"unet.towers_0_attend_q"}
    with pytest.raises(lm.IncompatibleError, match="belongs to an unknown model"):
        lm.combine([comfy, kohya], format="comfy")


def test_the_names_of_black_forest_labs_need_no_prefix(tmp_path):
    names = {
        "double_blocks.0.img_attn.qkv": "transformer.double_blocks.0.img_attn.qkv",
        "img_in": "transformer.x_embedder",
    }
    tensors = pairs(sizes(names), NEW) | {"double_blocks.0.img_attn.norm.query_norm.scale": np.ones(4)}
    path = saved(tmp_path / "a.safetensors", tensors)
    adapter = lm.load(path)

    same(adapter, {names[module]: update for module, update in updates(tensors, NEW).items()})
    assert len(adapter.extras) == 1
    made = lm.convert(path, tmp_path / "c.safetensors", "comfy", extras="drop").adapter
    assert lm.diff(adapter, made).missing == ["double_blocks.0.img_attn.norm.query_norm.scale"]
    more = saved(tmp_path / "b.safetensors", tensors | pairs({"layers.0.q": (4, 4)}, NEW))
    with pytest.raises(lm.IncompatibleError, match="it is not clear what these belong to"):
        lm.load(more)


def test_vectors_for_norms_are_no_matrices(tmp_path):
    tensors = pairs({"diffusion_model.blocks.0.q": (4, 4)}, NEW)
    tensors |= {"diffusion_model.blocks.0.norm.diff": np.ones(4, np.float32)}
    adapter = lm.load(saved(tmp_path / "a.safetensors", tensors))

    assert set(adapter.extras) == {"diffusion_model.blocks.0.norm.diff"}


ONETRAINER = {
    "transformer.double_blocks.0.img_attn.qkv.1": "transformer.transformer_blocks.0.attn.to_k",
    "transformer.single_blocks.2.linear1.2": "transformer.single_transformer_blocks.2.attn.to_v",
    "transformer.double_blocks.0.img_attn.proj": "transformer.transformer_blocks.0.attn.to_out.0",
    "transformer.img_in.proj": "transformer.x_embedder",
    "clip_l.text_model.encoder.layers.0.mlp.fc1": "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    "t5.encoder.block.0.layer.0.SelfAttention.q": "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
}
ONETRAINER_XL = {
    "unet.input_blocks.4.1.transformer_blocks.1.attn2.to_k": (
        "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k"
    ),
    "clip_g.text_model.encoder.layers.0.mlp.fc1": "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
}


@pytest.mark.parametrize("names", [ONETRAINER, ONETRAINER_XL], ids=["Flux", "SDXL"])
def test_onetrainers_own_names_are_read(tmp_path, names):
    tensors = pairs({name: (4, 4) for name in names}, alpha=1.0)
    path = saved(tmp_path / "a.safetensors", tensors)
    adapter = lm.load(path)

    same(adapter, {names[module]: update for module, update in updates(tensors).items()})
    with pytest.raises(lm.UsageError, match=r"can be read but not written.*format="):
        lm.combine([path, path])
    same(lm.convert(path, tmp_path / "d.safetensors", "diffusers").adapter, dict(dense(adapter)))


def dense(adapter):
    return {str(target): update.dense() for target, update in adapter.items()}


def test_onetrainers_flat_names_of_diffusers_are_kohyas_dialect(tmp_path):
    shapes = {
        **{f"lora_transformer_single_transformer_blocks_2_attn_to_{x}": (4, 4) for x in "qkv"},
        "lora_transformer_transformer_blocks_0_ff_net_2": (4, 16),
        "lora_te2_encoder_block_0_layer_0_SelfAttention_q": (4, 4),
    }
    tensors = pairs(shapes, alpha=1.0)
    adapter = lm.load(saved(tmp_path / "a.safetensors", tensors))
    names = [
        *(f"transformer.single_transformer_blocks.2.attn.to_{x}" for x in "qkv"),
        "transformer.transformer_blocks.0.ff.net.2",
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
    ]
    same(adapter, dict(zip(names, updates(tensors).values(), strict=True)))


def test_xlabs_keeps_several_modules_in_its_processors(tmp_path):
    rng, tensors, wanted = np.random.default_rng(2), {}, {}
    shapes = {
        "double_blocks.1.processor.qkv_lora1": (12, ["double_blocks.1.img_attn.qkv"]),
        "double_blocks.1.processor.qkv_lora2": (12, ["double_blocks.1.txt_attn.qkv"]),
        "double_blocks.1.processor.proj_lora1": (4, ["transformer_blocks.1.attn.to_out.0"]),
        "double_blocks.1.processor.proj_lora2": (4, ["transformer_blocks.1.attn.to_add_out"]),
        "single_blocks.3.processor.proj_lora": (4, ["single_transformer_blocks.3.proj_out"]),
        "single_blocks.3.processor.qkv_lora": (
            12,
            [f"single_transformer_blocks.3.attn.to_{x}" for x in "qkv"],
        ),
    }
    for name, (outs, modules) in shapes.items():
        up, down = normal(rng, outs, 2), normal(rng, 2, 20 if name.endswith("proj_lora") else 4)
        tensors |= {f"{name}.up.weight": up, f"{name}.down.weight": down}
        for module, part in zip(modules, np.split(product(up, down), len(modules)), strict=True):
            wanted[f"transformer.{module}"] = part
    adapter = lm.load(saved(tmp_path / "a.safetensors", tensors))

    same(adapter, wanted)
    done = lm.convert(adapter, tmp_path / "k.safetensors", "kohya")
    (fused,) = (u for t, u in done.adapter.items() if t.path == "single_blocks.3.linear1")
    assert fused.rank == 2, "cuts of one module share their units again"
    parts = [wanted[f"transformer.single_transformer_blocks.3.attn.to_{x}"] for x in "qkv"]
    np.testing.assert_allclose(fused.dense(), np.concatenate([*parts, np.zeros((16, 4))]), atol=1e-6)
