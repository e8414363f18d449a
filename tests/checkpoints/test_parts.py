"""A single file of an image model and a folder of diffusers are one model, however each of them is stored."""

import json

import ml_dtypes
import numpy as np
import pytest

import loramerge as lm
from loramerge.checkpoints.difference import paired
from loramerge.checkpoints.open import open_checkpoint
from tests.helpers.models import random_model, save_model

FP8 = ml_dtypes.float8_e4m3fn
QKV = "double_blocks.0.img_attn.qkv"
SIDES = {f"transformer_blocks.0.attn.to_{side}": i for i, side in enumerate("qkv")}


def scaled(weight, rows):
    """(8-bit floats, scales) of a matrix: one scale, or one a row."""
    scale = np.abs(weight).max(axis=1, keepdims=True) / 448
    scale = (scale if rows else scale.max().reshape(1)).astype(np.float32)
    return (weight / scale).astype(FP8), scale


def pipeline(folder, **parts):
    for part, tensors in parts.items():
        save_model(folder / part, tensors, {})
    (folder / "model_index.json").write_text(json.dumps({part: ["a", "b"] for part in parts}))
    return folder


@pytest.mark.parametrize("start", ["", "model.diffusion_model."])
@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_scales_of_8_bit_floats_count_whichever_of_both_has_them(tmp_path, start, rows, turned):
    rng = np.random.default_rng(0)
    before = (0.02 * rng.standard_normal((24, 8))).astype(ml_dtypes.bfloat16)
    added = rng.standard_normal((24, 1)) @ rng.standard_normal((1, 8))
    after = before + added.astype(np.float32)
    if turned:  # the folder is of 8-bit floats
        tensors = {}
        for name, i in SIDES.items():
            tensors[f"{name}.weight"], scale = scaled(after[8 * i : 8 * i + 8], rows)
            tensors[f"{name}.weight_scale"] = scale
        tuned = pipeline(tmp_path / "t", transformer=tensors)
        base = save_model(tmp_path / "b.safetensors", {f"{start}{QKV}.weight": before})
    else:
        weight, scale = scaled(after, rows)
        file = {f"{start}{QKV}.weight": weight, f"{start}{QKV}.scale_weight": scale}
        tuned = save_model(tmp_path / "t.safetensors", {**file, f"{start}scaled_fp8": np.zeros(2, FP8)})
        base = pipeline(
            tmp_path / "b",
            transformer={f"{name}.weight": before[8 * i : 8 * i + 8] for name, i in SIDES.items()},
        )
    pair = paired(open_checkpoint(tuned), open_checkpoint(base))
    found = {each[0].target.path: pair.module(each, 1, None) for each in pair.weights}
    whole = np.concatenate([found[name].up @ found[name].down for name in SIDES])
    assert np.linalg.norm(whole - added) < 0.05 * np.linalg.norm(added)


LAYERS = 3  # of the text encoder in a file of Stable Diffusion 2; diffusers leaves out the last one


def test_stable_diffusion_2_lacks_the_last_layer_of_its_text_encoder_in_a_folder(tmp_path):
    here, there = "cond_stage_model.model", "text_model.encoder.layers"
    blocks = [f"{here}.transformer.resblocks.{i}" for i in range(LAYERS)]
    proj = "model.diffusion_model.input_blocks.1.1.proj_in"
    shapes = {f"{block}.attn.in_proj_weight": (24, 8) for block in blocks}
    shapes |= {f"{block}.mlp.c_fc.weight": (32, 8) for block in blocks}
    around = {
        f"{here}.text_projection": (8, 8),
        f"{here}.logit_scale": (1,),
        f"{here}.positional_embedding": (4, 8),
    }
    file = random_model(0, {**shapes, **around, f"{proj}.weight": (8, 8)})
    save_model(tmp_path / "b.safetensors", file)
    text = {"text_model.embeddings.position_embedding.weight": file[f"{here}.positional_embedding"]}
    for i, block in enumerate(blocks[:-1]):
        parts = np.split(file[f"{block}.attn.in_proj_weight"], 3)
        text |= {f"{there}.{i}.self_attn.{s}_proj.weight": p for s, p in zip("qkv", parts, strict=True)}
        text[f"{there}.{i}.mlp.fc1.weight"] = file[f"{block}.mlp.c_fc.weight"]
    trained = f"{there}.1.self_attn.v_proj"
    text[f"{trained}.weight"] = text[f"{trained}.weight"] + np.float32(1)
    unet = {"down_blocks.0.attentions.0.proj_in.weight": file[f"{proj}.weight"] + np.float32(2)}
    pipeline(tmp_path / "t", text_encoder=text, unet=unet)
    done = lm.extract(tmp_path / "t", tmp_path / "b.safetensors", rank=1)
    found = {(target.component, target.path): update.dense() for target, update in done.adapter.items()}
    assert found.keys() == {("text_encoder", trained), ("unet", "down_blocks.0.attentions.0.proj_in")}
    np.testing.assert_allclose(found["text_encoder", trained], 1, atol=1e-5)
    assert f"text_encoder.{there}.2.mlp.fc1.weight" in " ".join(done.notes)
