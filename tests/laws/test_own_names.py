"""A law for every family in every spelling: what is made of sources of one spelling is called as they are.

A new row of the table of spellings enters by itself.
"""

import re

import pytest
from safetensors.numpy import load_file

import loramerge as lm
from tests.helpers.dialects import pairs, saved
from tests.helpers.files import bare
from tests.helpers.spelled import ROWS, stems, tensors

BLOCK = r"[._]1[._]"  # the files have this block and the first one


def source(path, met, seed):
    """A file with two blocks, and what is around them."""
    values = tensors(met, seed) | tensors(met, seed, around=True, block=1)
    return bare(path, values, {"modelspec.architecture": met.family.name})


def combined(paths, out, **asked):
    lm.combine(paths, "linear", alpha="rank", out=out, **asked)


def resized(paths, out):
    lm.resize(paths[0], out, rank=1, alpha="rank")


WORKS = {  # what makes a file -> how
    "combine": combined,
    "resize": resized,
    "only": lambda paths, out: combined(paths, out, only=BLOCK),
    "exclude": lambda paths, out: combined(paths, out, exclude=BLOCK),
}
TURNS = [(row, work, (n + m) % len(WORKS)) for n, row in enumerate(ROWS) for m, work in enumerate(WORKS)]


@pytest.mark.parametrize(
    ("row", "work"),
    [pytest.param(*case, marks=[pytest.mark.slow] if turn else []) for *case, turn in TURNS],
)
def test_what_is_made_is_called_as_its_sources(row, work, tmp_path):
    met, out = ROWS[row], tmp_path / "m.safetensors"
    paths = [source(tmp_path / f"{n}.safetensors", met, n) for n in (0, 1)]
    WORKS[work](paths, out)
    mine, found = stems(load_file(paths[0])), stems(load_file(out))
    inside = {stem for stem in mine if re.search(BLOCK, stem)}
    assert found == {"only": inside, "exclude": mine - inside}.get(work, mine)


UNTOLD = {  # rows whose file of one module is no image model's for certain, or several tools' -> such modules
    "z-image no prefix diffusers": "feed_forward",
    "z-image no prefix, default diffusers": "feed_forward",
    "ace-step-1 no prefix diffusers": "_conv|timestep_embedder",
    "hunyuan-video transformer. authors": "single_blocks",
}
AMBIGUOUS = {  # in files of their own they are of several families, which call them differently
    "hunyuan-video lora_unet_ authors": "img_mlp_fc1",
    "hunyuan-video diffusion_model. authors": "img_attn_proj",
    "ltx-video diffusion_model. first": "adaln_single.linear",
    "qwen-image lycoris_ diffusers": "img_in",
    "z-image lycoris_ first": "cap_embedder_1",
    "hidream transformer. diffusers": "final_layer.adaLN",
    "flux.1 transformer. with alphas diffusers": "x_embedder",
}


ALONE = [*AMBIGUOUS.items(), *(pytest.param(row, "", marks=pytest.mark.slow) for row in ROWS)]


@pytest.mark.parametrize(("row", "pattern"), ALONE)
def test_one_module_alone_keeps_its_name(row, pattern, tmp_path):
    """Nothing in the file need tell the family: then the name stays as it came."""
    met, out = ROWS[row], tmp_path / "m.safetensors"
    values = tensors(met, 0, around=True)
    known = {stem for stem in stems(values) if not re.search(UNTOLD.get(row, "^$"), stem)}
    for stem in sorted(stem for stem in known if re.search(pattern, stem)):
        one = {key: value for key, value in values.items() if key.startswith(f"{stem}.")}
        resized([bare(tmp_path / "a.safetensors", one)], out)
        assert stems(load_file(out)) == {stem}
        out.unlink()


CLIP, T5 = "text_model_encoder_layers_0_mlp_fc1", "encoder_block_0_layer_0_SelfAttention_q"
DOTTED = "text_model.encoder.layers.0.mlp.fc1"
ATTENTION = "transformer_blocks.0.attn1.to_q"
QUERY = "layers.0.self_attn.q_proj"
PIPELINES = {  # models with their text encoders, and U-Nets
    "SD 1": (f"lora_te_{CLIP}", "lora_unet_down_blocks_1_attentions_0_proj_in"),
    "SD XL": (f"lora_te1_{CLIP}", f"lora_te2_{CLIP}", "lora_unet_input_blocks_4_1_proj_in"),
    "SD XL in diffusers' names": (
        f"lora_te1_{CLIP}",
        f"lora_te2_{CLIP}",
        "lora_unet_mid_block_attentions_0_proj_in",
    ),
    "SD 1, comfy": (
        f"text_encoders.clip_l.transformer.{DOTTED}",
        f"diffusion_model.input_blocks.4.1.{ATTENTION}",
    ),
    "SD 2, comfy": (
        f"text_encoders.clip_h.transformer.{DOTTED}",
        f"diffusion_model.input_blocks.4.1.{ATTENTION}",
    ),
    "SD 1, diffusers": (f"text_encoder.{DOTTED}", f"unet.down_blocks.1.attentions.0.{ATTENTION}"),
    "a U-Net alone": (f"down_blocks.1.attentions.0.{ATTENTION}",),
    "Flux.1": (f"lora_te1_{CLIP}", f"lora_te3_{T5}", "lora_unet_double_blocks_0_img_attn_proj"),
    "SD 3": (
        f"lora_te1_{CLIP}",
        f"lora_te2_{CLIP}",
        f"lora_te3_{T5}",
        "lora_unet_joint_blocks_0_x_block_attn_proj",
    ),
    "Anima": ("lora_te_layers_0_self_attn_q_proj", "lora_unet_blocks_0_self_attn_output_proj"),
    "Anima, comfy": (
        f"text_encoders.qwen3_06b.transformer.model.{QUERY}",
        "diffusion_model.blocks.0.self_attn.output_proj",
    ),
    "Lumina 2": ("lora_te_layers_0_self_attn_q_proj", "lora_unet_layers_0_attention_qkv"),
    "Lumina 2, comfy": (
        f"text_encoders.gemma2_2b.transformer.model.{QUERY}",
        "diffusion_model.layers.0.attention.qkv",
    ),
}


def pipeline(path, names, seed):
    old = names[0].startswith("lora_")
    sizes = {name: (20, 12) if "qkv" in name else (12, 12) for name in names}
    return saved(
        path, pairs(sizes, ("lora_down", "lora_up") if old else ("lora_A", "lora_B"), seed=seed, alpha=2.0)
    )


@pytest.mark.parametrize("work", ["combine", "resize"])
@pytest.mark.parametrize("names", PIPELINES.values(), ids=PIPELINES)
def test_the_parts_of_a_pipeline_are_called_as_in_its_sources(names, work, tmp_path):
    out = tmp_path / "m.safetensors"
    WORKS[work]([pipeline(tmp_path / f"{n}.safetensors", names, n) for n in (0, 1)], out)
    assert stems(load_file(out)) == set(names)


ENCODED = [("Anima", "Anima, comfy"), ("Lumina 2", "Lumina 2, comfy")]


@pytest.mark.parametrize("pair", ENCODED)
def test_a_language_model_that_encodes_text_is_one_in_two_spellings(pair, tmp_path):
    paths = [pipeline(tmp_path / f"{n}.safetensors", PIPELINES[name], n) for n, name in enumerate(pair)]
    for format, name in zip(("kohya", "comfy"), pair, strict=True):
        merge = lm.combine(paths, "cat", format=format, out=tmp_path / f"{format}.safetensors")
        assert stems(load_file(tmp_path / f"{format}.safetensors")) == set(PIPELINES[name])
        assert len(merge.adapter) == 2
