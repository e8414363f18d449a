"""Every format that we read, for every program: who reads it, and what of it."""

import numpy as np
import pytest

import loramerge as lm
from loramerge.consumers import CONSUMERS, meant
from loramerge.consumers.check import facts_of
from loramerge.consumers.consumer import LANGUAGE
from loramerge.formats.dialects import DIALECTS, named
from tests.consumers.hostile import FLUX, HOSTILE
from tests.helpers.files import bare

SERVERS = ["peft", "transformers", "vllm", "sglang", "llama.cpp"]
IMAGES = ["diffusers", "comfyui"]
DEFAULT = ("lora_A.default.weight", "lora_B.default.weight")
ENDS, KOHYA = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")


def pair(module, ends=ENDS, outs=96):
    """A pair of rank 2 for an update of (96, 32)."""
    down, up = np.ones((2, 32), np.float32), np.ones((outs, 2), np.float32)
    return {
        f"{module}{each if each[0] == ':' else f'.{each}'}": v
        for each, v in zip(ends, (down, up), strict=True)
    }


def xlabs(doubles, singles):
    old, made = ("down.weight", "up.weight"), {}
    for i in range(doubles):
        made |= pair(f"double_blocks.{i}.processor.qkv_lora1", old)
        made |= pair(f"double_blocks.{i}.processor.qkv_lora2", old)
    for i in range(singles):
        made |= pair(f"single_blocks.{i}.processor.qkv_lora", old)
    return made


def wavllm():
    values = pair("x", ("A", "B"))
    return {f"layers.0.attention.wq_lora_{key[-1]}": value.T.copy() for key, value in values.items()}


def omni():
    """Of a rank that one RANK gives: 32 inputs by 4."""
    down, up = np.ones((8, 32), np.float32), np.ones((96, 8), np.float32)
    return {f"layers.0.self_attn.lora_{side}_Q.weight": v for side, v in (("down", down), ("up", up))}


CONTROL = {
    "double_blocks.0.img_attn.norm.query_norm.scale": np.ones(16, np.float32),
    "single_blocks.0.norm.key_norm.scale": np.ones(16, np.float32),
}
ATTENTION = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
FILES = {  # name -> (format, tensors, those who load it as it is meant, those who do not -> words)
    "PEFT in one file": (
        "peft",
        pair("base_model.model.model.layers.0.self_attn.q_proj"),
        [],
        dict.fromkeys(SERVERS, "a folder with an adapter_config.json, and this is one file")
        | {"comfyui": "ignores keys with base_model.model"},
    ),
    "kohya": ("kohya", pair("lora_unet_mid_block_attentions_0_proj_in", KOHYA), IMAGES, {}),
    "kohya in OneTrainer's way": (
        "kohya",
        pair("lora_transformer_transformer_blocks_0_attn_to_q", KOHYA, outs=32),
        IMAGES,
        {},
    ),
    "LyCORIS": (
        "kohya",
        pair("lycoris_transformer_blocks_0_attn_to_q", KOHYA, outs=32),
        ["comfyui"],
        {"diffusers": "lora_down.weight with Flux.2 alone, and there LoKr alone"},
    ),
    "diffusers": ("diffusers", pair("unet.mid_block.attentions.0.proj_in"), IMAGES, {}),
    "diffusers of Flux": ("diffusers", pair(FLUX, outs=32), IMAGES, {}),
    "ComfyUI of Wan": ("comfy", pair("diffusion_model.blocks.0.self_attn.q", outs=32), IMAGES, {}),
    "ComfyUI of SD": (
        "comfy",
        pair(f"diffusion_model.{ATTENTION}"),
        ["comfyui"],
        {"diffusers": "it loads nothing in the names of ComfyUI"},
    ),
    "ComfyUI of Flux": (
        "comfy",
        pair("diffusion_model.double_blocks.0.img_attn.qkv"),
        ["comfyui"],
        {"diffusers": "it loads nothing in the names of ComfyUI"},
    ),
    "ComfyUI of Flux, as of kohya": (
        "comfy",
        pair("diffusion_model.double_blocks.0.img_attn.qkv", KOHYA),
        IMAGES,
        {},
    ),
    "Black Forest Labs": (
        "bfl",
        pair("double_blocks.0.img_attn.qkv"),
        [],
        {
            "diffusers": "of these names it loads only control LoRAs of Flux",
            "comfyui": "of these names it loads only control LoRAs of Flux",
        },
    ),
    "Black Forest Labs, control": (
        "bfl",
        pair("double_blocks.0.img_attn.qkv") | pair("img_in") | CONTROL,
        IMAGES,
        {},
    ),
    "XLabs": (
        "xlabs",
        xlabs(2, 1),
        ["diffusers"],
        {"comfyui": "of these names it loads only files that have every block of Flux"},
    ),
    "XLabs, every block": ("xlabs", xlabs(19, 38), IMAGES, {}),
    "OneTrainer of SD": ("onetrainer", pair(f"unet.{ATTENTION}"), [], {}),
    "OneTrainer of Flux": ("onetrainer", pair("transformer.double_blocks.0.img_attn.qkv.0"), [], {}),
    "no prefix": ("bare", pair("transformer_blocks.0.img_mlp.net.0.proj", DEFAULT, 128), IMAGES, {}),
    "no prefix, of Z-Image": (
        "bare",
        pair("layers.0.attention.to_q", outs=32),
        ["comfyui"],
        {"diffusers": "does not read Z-Image in such names"},
    ),
    "cloneofsimo": ("cloneofsimo", pair("unet:0", (":down", ":up")), [], {}),
    "sam": ("sam", {"w_a_000": np.ones((2, 6), "f4"), "w_b_000": np.ones((8, 2), "f4")}, [], {}),
    "loralib": ("loralib", pair("transformer.h.0.attn.c_attn", ("lora_A", "lora_B")), [], {}),
    "SoRA": ("sora", pair("layer.0.query.lora", ("lora_A", "lora_B")), [], {}),
    "WavLLM": ("wavllm", wavllm(), [], {}),
    "Omni-AVSR": ("omni", omni(), [], {}),
    "NOLA": ("nola", {f"fc1_{x}_000": np.ones(4, "f4") for x in ("A", "alpha", "beta")}, [], {}),
    "CLIP-LoRA": ("clip-lora", pair("layer_0.q_proj", ("w_lora_A", "w_lora_B")), [], {}),
}


OUTSIDE = {
    "final_layer_linear": "proj_out",
    "final_layer_adaLN_modulation_1": "norm_out.linear",
    "txt_in": "context_embedder",
    "img_in": "x_embedder",
    "vector_in_in_layer": "time_text_embed.text_embedder.linear_1",
    "time_in_in_layer": "time_text_embed.timestep_embedder.linear_1",
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_of_flux_in_the_names_of_kohya_diffusers_loads_the_blocks(name, cli, tmp_path):
    torch = pytest.importorskip("torch", reason="diffusers comes with the extra `test`")
    conversion = pytest.importorskip(
        "diffusers.loaders.lora_conversion_utils", reason="diffusers comes with the extra `test`"
    )
    values = pair(f"lora_unet_{name}", KOHYA, outs=64)
    values |= pair("lora_unet_double_blocks_18_img_attn_qkv", KOHYA)  # Flux.2 has not so many
    own = conversion._convert_kohya_flux_lora_to_diffusers({k: torch.tensor(v) for k, v in values.items()})
    lost = {key.partition(".lora_")[0] for key in own if not key.startswith("transformer.")}
    assert lost == {OUTSIDE[name]}
    bare(tmp_path / "a.safetensors", values)
    (finding,) = lm.check("a.safetensors", "diffusers")
    assert finding.effect == "ignores"
    assert "1 of 2 modules, such as lora_unet_" in finding.sentence
    assert "double_blocks" not in finding.sentence
    assert cli(*finding.command.split()[1:]).code == 0, cli.err
    assert not lm.check(finding.command.split()[-1], "diffusers")
    cli("combine", "a.safetensors", "--for", "diffusers", "--format", "kohya", "-o", "k.safetensors")
    assert cli.code == 3
    assert "in such names it loads the blocks only" in cli.err


def test_no_format_is_missing_here():
    assert {dialect for dialect, *_ in FILES.values()} | {"mlx"} == set(DIALECTS)


@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize("name", FILES)
def test_each_program_reads_what_we_say_it_reads(name, consumer, tmp_path):
    dialect, tensors, readers, partly = FILES[name]
    file = bare(tmp_path / "a.safetensors", tensors)
    assert facts_of(file).dialect == dialect
    said = [finding.sentence for finding in lm.check(file, consumer)]
    if consumer in readers:
        assert said == []
    elif consumer in partly:
        assert partly[consumer] in said[0]
    else:
        (sentence,) = said
        assert "finds nothing to load: it reads the names of " in sentence
        assert f"and this is {named(dialect).words} ({next(iter(tensors))})." in sentence


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_a_folder_of_mlx_lm_is_for_mlx_lm_only(consumer, tmp_path):
    said = [finding.sentence for finding in lm.check(HOSTILE["mlx"](tmp_path / "a"), consumer)]
    assert len(said) == (consumer != "mlx")
    assert all("this is an mlx-lm adapter (model.layers.0.q.lora_a)." in sentence for sentence in said)


@pytest.mark.parametrize("name", FILES)
def test_what_no_program_reads_has_those_that_are_asked(name, tmp_path):
    asked = [consumer.name for consumer in meant(facts_of(bare(tmp_path / "a.safetensors", FILES[name][1])))]
    assert asked == (SERVERS if FILES[name][0] in LANGUAGE else IMAGES)


@pytest.mark.parametrize("consumer", ["peft", "vllm", "mlx", *IMAGES])
@pytest.mark.parametrize("name", FILES)
def test_the_command_that_is_offered_mends_it(name, consumer, cli, tmp_path):
    bare(tmp_path / "a.safetensors", FILES[name][1])
    for finding in lm.check("a.safetensors", consumer):
        if finding.effect == "unknown":  # there is nothing to mend
            continue
        assert finding.command or finding.mend.startswith(("loramerge cannot rewrite it: ", "vLLM is not"))
        if finding.command:
            words = finding.command.replace("--alpha A", "--alpha 8").split()
            assert cli(*words[1:]).code == 0, cli.err
            assert {left.effect for left in lm.check(words[-1], consumer)} <= {"unknown"}  # of no known model
