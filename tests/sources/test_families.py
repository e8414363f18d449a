"""Sources of image and video models: one family for all of them together, or a refusal by name."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import loramerge as lm
from loramerge.formats.dialects.together import described
from tests.helpers.dialects import pairs, saved

NEW = ("lora_A", "lora_B")
WAN = "diffusion_model.blocks.{}.self_attn.q"


def wan(tmp_path, name, size=(4, 4), metadata=None):
    return saved(tmp_path / f"{name}.safetensors", pairs({WAN.format(0): size}, NEW), metadata)


def test_a_source_that_does_not_tell_takes_the_family_of_the_others(tmp_path):
    """`attention.out` is of Z-Image or Lumina 2; with `qkv` beside it, of Z-Image."""
    out = {"diffusion_model.layers.0.attention.out": (4, 4)}
    alone = saved(tmp_path / "a.safetensors", pairs(out, NEW, seed=1))
    both = {"lora_unet_layers_0_attention_qkv": (12, 4), "lora_unet_layers_0_attention_out": (4, 4)}
    whole = saved(tmp_path / "b.safetensors", pairs(both, seed=2))
    assert not lm.load(alone).families
    for order in ([alone, whole], [whole, alone]):
        made = lm.combine(order, "cat", format="diffusers").adapter
        names = {str(target).removeprefix("transformer.layers.0.attention.") for target in made}
        assert names == {"to_q", "to_k", "to_v", "to_out.0"}
    wanted = sum(next(u.dense() for t, u in lm.load(f).items() if "out" in t.path) for f in (alone, whole))
    found = next(u.dense() for t, u in made.items() if "to_out" in t.path)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_sources_of_two_families_are_refused_by_their_names(tmp_path):
    paths = [
        saved(tmp_path / "z.safetensors", pairs({"diffusion_model.layers.0.attention.qkv": (12, 4)}, NEW)),
        saved(tmp_path / "l.safetensors", pairs({"diffusion_model.layers.0.attention.qkv": (20, 12)}, NEW)),
    ]
    with pytest.raises(lm.IncompatibleError, match=r"z.*Z-Image.*l.*Lumina 2.*has two sizes"):
        lm.combine(paths)


# A kind from the wild: E, high and low noise.
@pytest.mark.parametrize(
    ("one", "two", "words"),
    [
        ("wan2.2_high_noise", "wan2.2_low_noise", r"high noise.*low noise"),
        ("wan_t2v", "wan_i2v", r"T2V.*I2V"),
    ],
)
def test_variants_are_not_mixed_unasked(one, two, words, tmp_path):
    paths = [wan(tmp_path, one), wan(tmp_path, two)]
    with pytest.raises(lm.IncompatibleError, match=words):
        lm.combine(paths)
    assert len(lm.combine(paths, allow_base_mismatch=True).adapter) == 1


def test_two_sizes_of_a_family_are_told_apart(tmp_path):
    shapes = [{"diffusion_model.double_blocks.0.img_mlp.2": (n, 3 * n)} for n in (3072, 4096)]
    double = [{"diffusion_model.double_blocks.0.img_attn.proj": (n, n)} for n in (3072, 4096)]
    paths = [
        saved(tmp_path / f"{n}.safetensors", pairs({**a, **b}, NEW, rank=1))
        for n, (a, b) in enumerate(zip(shapes, double, strict=True))
    ]
    with pytest.raises(lm.IncompatibleError, match=r"Flux\.2, 4B.*Flux\.2, 9B"):
        lm.combine(paths)


def test_the_second_model_of_a_pipeline_is_the_one_for_low_noise(tmp_path):
    path = saved(tmp_path / "a.safetensors", pairs({"transformer_2.blocks.0.attn1.to_q": (5120, 5120)}, NEW))
    assert described(lm.load(path)) == "Wan, low noise, 14B"
    assert "for Wan, low noise, 14B" in str(lm.inspect(path))


def second(tmp_path, name):
    keys = {f"transformer_2.blocks.{n}.attn1.to_q": (5120, 5120) for n in (0, 39)}
    return saved(tmp_path / f"{name}.safetensors", pairs(keys, NEW, rank=1, seed=ord(name)))


@pytest.mark.parametrize(
    ("asked", "stem"),
    [
        ({}, "transformer_2.blocks.0.attn1.to_q"),
        ({"format": "transformer."}, "transformer.blocks.0.attn1.to_q"),
        ({"consumer": "diffusers"}, "transformer.blocks.0.attn1.to_q"),
        ({"format": "comfyui"}, "diffusion_model.blocks.0.self_attn.q"),
    ],
)
def test_what_is_for_low_noise_is_so_by_other_names_too(asked, stem, tmp_path):
    """diffusers has no use for `transformer_2.`: for it a merge is written so that it is found."""
    found = lm.combine(
        [second(tmp_path, "a"), second(tmp_path, "b")], "cat", out=tmp_path / "m.safetensors", **asked
    )
    assert stem in {key.split(".lora_")[0] for key in load_file(tmp_path / "m.safetensors")}
    assert described(found.adapter) == described(lm.load(tmp_path / "m.safetensors")) == "Wan, low noise, 14B"
    lm.replay(tmp_path / "m.safetensors", out=tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()
    high = saved(
        tmp_path / "wan2.2_high_noise.safetensors", pairs({WAN.format(0): (5120, 5120)}, NEW, rank=1)
    )
    with pytest.raises(lm.IncompatibleError, match=r"low noise.*high noise"):
        lm.combine([tmp_path / "m.safetensors", high], format="comfy")


def test_one_adapter_is_found_equal_under_both_names_of_its_model(tmp_path):
    lm.convert(second(tmp_path, "a"), tmp_path / "b.safetensors", "comfyui")
    assert lm.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors").largest < 1e-6


@pytest.mark.parametrize(
    ("name", "noise"),
    {
        "Wan2.2-Lightning_T2V-A14B-4steps-lora_LOW_fp16": "low noise",
        "wan22_ink_high": "high noise",
        "HIGH-wan-rank64": "high noise",
        "wan_low_poly": "",
        "wan_highlands": "",
        "wan22_I2V_HN_style": "high noise",
        "wan22-ln": "low noise",
        "WanT2VHighNoise": "high noise",
        "wan22_high_rank64": "high noise",
        "wan_high_quality": "",
        "wan_hnx_slow": "",
        "wan_low_and_high": "",
        "high_low": "",
        "HN_portrait": "",
        "low_battery": "",
        "wan_high_voltage": "",
        "wan22_highres_detail": "",
        "high_v_neck": "",
        "wan22_high_ink": "high noise",
        "ink_LN_v2": "low noise",
        "ink_i2v_HIGH_e320": "high noise",
        "wan_hn-fp16": "high noise",
    }.items(),
)
def test_a_name_says_which_noise_it_is_for(name, noise, tmp_path):
    said = described(lm.load(wan(tmp_path, name)))
    assert noise in said
    assert ("noise" in said) is bool(noise)


def test_a_title_in_the_metadata_says_it_too(tmp_path):
    high = wan(tmp_path, "a", metadata={"modelspec.title": "Ink 2.2 HN"})
    low = wan(tmp_path, "b", metadata={"ss_output_name": "ink-low-noise"})
    with pytest.raises(lm.IncompatibleError, match=r"high noise.*low noise"):
        lm.combine([high, low])


def test_the_size_is_told_by_a_name_where_widths_do_not(tmp_path):
    block = {"diffusion_model.double_blocks.0.img_mlp.2": (4, 12)}
    small = saved(tmp_path / "flux2-klein-4b-ink.safetensors", pairs(block, NEW))
    large = saved(tmp_path / "flux2-klein-9b-oil.safetensors", pairs(block, NEW))
    with pytest.raises(lm.IncompatibleError, match=r"4B.*9B"):
        lm.combine([small, large])


LTX = {  # name of a file -> (names of modules, width, what is said of it)
    "video": ("attn2.to_k", 4096, "LTX-Video 13B or LTX-2 19B or 22B, the tensors do not tell"),
    "small": ("attn2.to_k", 2048, "LTX-Video, 2B"),
    "ltxv-13b-ink": ("attn2.to_k", 4096, "LTX-Video, 13B"),
    "ltx-2-ink": ("attn2.to_k", 4096, "LTX-2 or 2.3, 19B or 22B"),
    "ltx-2.3-ink": ("attn2.to_k", 4096, "LTX-2.3, 19B or 22B"),
    "ltx-2-19b-ink": ("attn2.to_k", 4096, "LTX-2, 19B"),
    "sound": ("audio_attn1.to_q", 2048, "LTX-2 or 2.3"),
    "gate": ("attn1.to_gate_logits", 4096, "LTX-2.3, 22B"),
}


def ltx(tmp_path, name):
    module, width, _ = LTX[name]
    key = f"diffusion_model.transformer_blocks.0.{module}"
    return saved(tmp_path / f"{name}.safetensors", pairs({key: (width, width)}, NEW, rank=1))


@pytest.mark.parametrize("name", LTX)
def test_what_tensors_do_not_tell_is_said(name, tmp_path):
    assert described(lm.load(ltx(tmp_path, name))) == LTX[name][2]


LTX_PAIRS = [
    "ltx-2-19b-ink gate",
    "ltxv-13b-ink sound",
    "ltxv-13b-ink ltx-2-ink",
    "small sound",
    "small video",
]


@pytest.mark.parametrize("names", LTX_PAIRS)
def test_two_models_of_ltx_are_not_mixed_unasked(names, tmp_path):
    paths = [ltx(tmp_path, name) for name in names.split()]
    for order in (paths, paths[::-1]):
        with pytest.raises(lm.IncompatibleError, match="two different models"):
            lm.combine(order, "cat")


def test_a_file_that_does_not_tell_goes_with_either(tmp_path):
    for name in ("ltxv-13b-ink", "sound"):
        assert lm.combine([ltx(tmp_path, "video"), ltx(tmp_path, name)], "cat").adapter


QWEN = "diffusion_model.transformer_blocks.0.txt_mlp.net.0.proj"


@pytest.mark.parametrize(
    ("name", "model"),
    {
        "qwen_edit_2511_ink": "Edit-2511",
        "Qwen-Image-Edit": "Edit",
        "qwen_layered": "Layered",
        "qwen_edited": "",
        "edit-2511-multi": "Edit-2511",
        "edit_tool": "",
        "layered_hair": "",
        "style_2509": "",
    }.items(),
)
def test_the_models_of_qwen_image_are_told_by_names_and_merge_with_a_note(name, model, tmp_path):
    one = saved(
        tmp_path / f"{name}.safetensors", pairs({QWEN: (16, 4), "diffusion_model.img_in": (4, 4)}, NEW)
    )
    other = saved(tmp_path / "qwen_edit_2509.safetensors", pairs({QWEN: (16, 4)}, NEW))
    assert described(lm.load(one)) == ", ".join(filter(None, ["Qwen-Image", model]))
    notes = [note for note in lm.combine([one, other], "cat").report.notes if "another source" in note]
    assert len(notes) == (2 if model else 0)
    assert all(model in note and "Edit-2509" in note for note in notes)


def test_the_model_is_called_as_its_makers_call_it(tmp_path):
    path = wan(tmp_path, "Wan2.2_T2V_low_noise_ink", (5120, 5120))
    assert "for Wan 2.2, low noise, T2V 14B" in str(lm.inspect(path))


def test_an_unknown_model_keeps_its_stems_and_no_family(tmp_path):
    path = saved(tmp_path / "a.safetensors", pairs({"lycoris_towers_0_attend": (4, 4)}, alpha=1.0))
    lm.save(lm.load(path), tmp_path / "b.safetensors")
    assert not lm.load(path).families
    assert {str(t) for t in lm.load(tmp_path / "b.safetensors")} == {str(t) for t in lm.load(path)}
    assert load_file(path).keys() == load_file(tmp_path / "b.safetensors").keys()


# A kind from the wild: B2, a doubled prefix.
def test_a_doubled_prefix_is_no_part_of_a_name(tmp_path):
    name = "mid_block_attentions_0_proj_in"
    twice = saved(tmp_path / "a.safetensors", pairs({f"lora_unet_unet_{name}": (4, 4)}, alpha=1.0))
    once = saved(tmp_path / "b.safetensors", pairs({f"lora_unet_{name}": (4, 4)}, alpha=1.0))
    assert lm.load(twice).keys() == lm.load(once).keys()
    assert len(lm.combine([twice, once]).adapter) == 1


# A kind from the wild: B3, integer alphas.
def test_a_whole_number_is_an_alpha_in_every_spelling(tmp_path):
    stem = "transformer_blocks.0.img_mlp.net.0.proj"
    tensors = pairs({stem: (16, 4)}) | {f"{stem}.alpha": np.array(4, np.int64)}
    (update,) = lm.load(saved(tmp_path / "a.safetensors", tensors)).values()
    assert update.scale == 2.0


STRANGERS = {  # what a model of its kind, unknown here, has beside the modules of a known one
    "Wan S2V": ("diffusion_model.blocks.0.self_attn.q", "diffusion_model.audio_injector.injector.0.q"),
    "Wan with a camera": ("diffusion_model.blocks.0.self_attn.q", "diffusion_model.control_adapter.conv"),
    "a controller of Z-Image": (
        "diffusion_model.layers.0.attention.to_q",
        "diffusion_model.control_layers.0.attention.to_q",
    ),
    "Chroma with other heads": (
        "diffusion_model.distilled_guidance_layer.in_proj",
        "diffusion_model.nerf_blocks.0.param_generator",
    ),
}


@pytest.mark.parametrize("names", STRANGERS.values(), ids=STRANGERS)
def test_a_model_that_is_only_partly_known_is_not_merged_under_two_names(names, tmp_path):
    known, odd = names
    whole = saved(tmp_path / "a.safetensors", pairs({known: (4, 4)}, NEW, seed=1))
    mixed = saved(tmp_path / "b.safetensors", pairs({known: (4, 4), odd: (4, 4)}, NEW, seed=2))
    for order in ([whole, mixed], [mixed, whole]):
        with pytest.raises(lm.IncompatibleError, match="no model known here has") as caught:
            lm.combine(order, "linear", out=tmp_path / "m.safetensors")
        assert "exclude" in str(caught.value)
    lm.convert(mixed, tmp_path / "c.safetensors", "comfy", exclude=odd.removeprefix("diffusion_model."))
    assert len(lm.combine([whole, tmp_path / "c.safetensors"], "linear").adapter) == 1
    assert len(lm.combine([mixed, mixed], "linear").adapter) == 2


def test_a_model_with_blocks_for_control_is_known_and_not_mixed_with_the_plain_one(tmp_path):
    block, control = (f"diffusion_model.{stem}.0.self_attn.q" for stem in ("blocks", "vace_blocks"))
    plain = saved(tmp_path / "a.safetensors", pairs({block: (4, 4)}, NEW, seed=1))
    vace = saved(tmp_path / "b.safetensors", pairs({block: (4, 4), control: (4, 4)}, NEW, seed=2))
    assert described(lm.load(vace)) == "Wan VACE"
    with pytest.raises(lm.IncompatibleError, match=r"for Wan and .* for Wan VACE"):
        lm.combine([plain, vace], "cat")
    assert len(lm.combine([plain, vace], "cat", allow_base_mismatch=True).adapter) == 2


def test_a_unet_and_a_transformer_are_no_parts_of_one_pipeline(tmp_path):
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    unet = saved(tmp_path / "a.safetensors", pairs({stem: (4, 4)}))
    flux = saved(tmp_path / "b.safetensors", pairs({"lora_unet_double_blocks_0_img_attn_qkv": (12, 4)}))
    text = saved(tmp_path / "c.safetensors", pairs({"lora_te_text_model_encoder_layers_0_mlp_fc1": (4, 4)}))
    with pytest.raises(lm.IncompatibleError, match="no pipeline has both"):
        lm.combine([unet, flux], "linear")
    assert len(lm.combine([unet, text], "linear").adapter) == 2


@pytest.mark.parametrize("holder", ["model_", "dit_", "diffusion_model_", "_"])
def test_a_flat_name_in_an_unknown_holder_is_no_other_part_of_a_pipeline(holder, tmp_path):
    name = "double_blocks_0_img_attn_qkv"
    flux = saved(tmp_path / "a.safetensors", pairs({f"lora_unet_{name}": (12, 4)}))
    held = saved(tmp_path / "b.safetensors", pairs({f"lora_unet__{holder}{name}": (12, 4)}))
    with pytest.raises(lm.IncompatibleError, match="safetensors is a name of no model that is known"):
        lm.combine([flux, held], "linear")


@pytest.mark.parametrize("format", ["comfy", "diffusers", "kohya"])
def test_a_module_that_is_there_whole_and_in_parts_is_refused(format, tmp_path):
    layer = "diffusion_model.layers.0.attention"
    both = pairs({f"{layer}.qkv": (12, 4), f"{layer}.to_q": (4, 4)}, NEW)
    source = saved(tmp_path / "a.safetensors", both)
    for work in (lm.combine, lm.convert):
        more = () if work is lm.combine else (tmp_path / "b.safetensors", format)
        with pytest.raises(lm.IncompatibleError, match=r"one weight .*convert` with exclude"):
            work(source if more else [source], *more, **({} if more else {"format": format}))
    assert all(
        "one weight under two names" in str(lm.check(source, each)) for each in ("comfyui", "diffusers")
    )
    lm.convert(source, tmp_path / "c.safetensors", "comfy", exclude="to_q$")
    left = lm.combine([tmp_path / "c.safetensors"], "linear").adapter
    assert [target.path for target in left] == ["layers.0.attention.qkv"]


def test_two_sizes_of_one_family_are_refused_even_where_others_could_be_meant(tmp_path):
    block = "diffusion_model.transformer_blocks.{}.attn1.to_q"
    small = saved(tmp_path / "a.safetensors", pairs({block.format(0): (2048, 2048)}, NEW))
    large = saved(tmp_path / "b.safetensors", pairs({block.format(1): (4096, 4096)}, NEW))
    with pytest.raises(lm.IncompatibleError, match=r"2B.*13B.*two different models"):
        lm.combine([small, large], "linear")


QKV = {"diffusion_model.double_blocks.0.img_attn.qkv": (9216, 3072)}  # of four families
Z = {"diffusion_model.layers.0.attention.qkv": (11520, 3840)}
CALLED = {  # name of a file -> (its modules, the model that is said)
    "flux_2_klein_ink": (QKV, "Flux.2, Klein, 4B"),
    "InkFlux_v2": (QKV, "Flux.1, 12B"),
    "kontext_dev": (QKV, "Flux.1, Kontext, 12B"),
    "ink_fluxdev": (QKV, "Flux.1, dev, 12B"),
    "framepack-ink": (QKV, "HunyuanVideo, FramePack, 13B"),
    "z_image_turbo": (Z, "Z-Image, Turbo, 6B"),
    "ink_zit_v2": (Z, "Z-Image, Turbo, 6B"),
    "turbo_charged": (Z, "Z-Image, 6B"),
    "base_edit": (Z, "Z-Image, 6B"),
}


@pytest.mark.parametrize("name", ["flux_3", "influx", "chromakey", "hunyuan_image_ink", "fill_light"])
def test_a_name_that_only_contains_that_of_a_model_tells_none(name, tmp_path):
    path = saved(tmp_path / f"{name}.safetensors", pairs(QKV, NEW, rank=1))
    assert "the tensors do not tell" in described(lm.load(path))


@pytest.mark.parametrize("name", CALLED)
def test_a_word_of_every_day_tells_a_model_only_beside_the_name_of_its_family(name, tmp_path):
    shapes, said = CALLED[name]
    assert described(lm.load(saved(tmp_path / f"{name}.safetensors", pairs(shapes, NEW, rank=1)))) == said


def test_a_name_tells_no_family_that_has_no_model_of_this_width(tmp_path):
    """Sana is a name of people, too."""
    shapes = {"transformer.transformer_blocks.0.attn1.to_q": (1920, 1920)}
    path = saved(tmp_path / "sana.safetensors", pairs(shapes, NEW, rank=1))
    assert described(lm.load(path)) == "CogVideoX, 2B"


@pytest.mark.parametrize(
    ("place", "said"),
    {
        "wan22_low_noise/pytorch_lora_weights": "Wan 2.2, low noise",
        "wan22_low_noise/epoch10/adapter_model": "Wan 2.2, low noise",
        "wan22_low_noise/ink": "Wan",
    }.items(),
)
def test_a_file_that_a_tool_has_named_is_called_as_its_folder_is(place, said, tmp_path):
    path = tmp_path / f"{place}.safetensors"
    path.parent.mkdir(parents=True)
    assert described(lm.load(saved(path, pairs({WAN.format(0): (4, 4)}, NEW)))) == said


def test_a_long_title_takes_no_long_time(tmp_path):
    path = saved(tmp_path / "a.safetensors", pairs(Z, NEW, rank=1), {"modelspec.title": "qwen edit " * 99999})
    assert described(lm.load(path)) == "Z-Image, 6B"


ANIMA = {  # a spelling -> the keys of a block, and of the text adapter beside it
    "comfy": ("diffusion_model.blocks.0.self_attn.q_proj", "diffusion_model.llm_adapter.blocks.0.mlp.0"),
    "kohya": ("lora_unet_blocks_0_self_attn_q_proj", "lora_unet_llm_adapter_blocks_0_mlp_0"),
    "diffusers": ("transformer.transformer_blocks.0.attn1.to_q", "text_conditioner.blocks.0.mlp.0"),
}


@pytest.mark.parametrize("format", ANIMA)
@pytest.mark.parametrize("source", ANIMA)
def test_the_text_adapter_of_anima_has_its_name_in_every_spelling(source, format, tmp_path):
    """diffusers has it in a model of its own, and other tools in the model that it is for."""
    block, text = ANIMA[source]
    one = saved(tmp_path / "a.safetensors", pairs({block: (4, 4), text: (16, 4)}, NEW))
    other = saved(tmp_path / "b.safetensors", pairs({ANIMA[format][1]: (16, 4)}, NEW, seed=1))
    out = tmp_path / "m.safetensors"
    merge = lm.combine([one, other], "cat", format=format, alpha="rank", out=out)
    assert {key.partition(".lora_")[0] for key in load_file(out)} - {f"{k}.alpha" for k in ANIMA[format]} == {
        *ANIMA[format]
    }
    assert described(merge.adapter) == described(lm.load(out, "rank", optional=True)) == "Anima"
    chosen = lm.combine([one], "cat", alpha="rank", only="llm_adapter").adapter
    assert chosen.keys() == lm.combine([one], "cat", alpha="rank", only="text_conditioner").adapter.keys()
    assert len(chosen) == 1


SHOWN = {  # what a file has -> what it is called; the last one tells nothing
    "Stable Diffusion 3.5, medium": {"joint_blocks.2.x_block.attn2.qkv": (4608, 1536)},
    "Stable Diffusion 3.5, medium ": {"joint_blocks.2.x_block.adaLN_modulation.1": (13824, 1536)},
    "Stable Diffusion 3, medium": {"joint_blocks.2.x_block.adaLN_modulation.1": (9216, 1536)},
    "Stable Diffusion 3.5, large": {"joint_blocks.2.x_block.attn.qkv": (7296, 2432)},
    "Stable Diffusion 3 or 3.5, medium": {"joint_blocks.2.x_block.attn.qkv": (4608, 1536)},
    "Stable Diffusion 3 or 3.5, medium ": {"joint_blocks.20.x_block.adaLN_modulation.1": (9216, 1536)},
    "Wan, I2V 14B": {"blocks.0.cross_attn.k_img": (5120, 5120)},
    "Flux.1, Fill, 12B": {"img_in": (3072, 384), "vector_in.out_layer": (3072, 3072)},
    "Flux.1, 12B": {"img_in": (3072, 64), "vector_in.out_layer": (3072, 3072)},
    "Sana, 4.8B": {"blocks.21.attn.qkv": (6720, 2240)},
    "Sana, 1.6B or 4.8B": {"blocks.19.attn.qkv": (6720, 2240)},
    "Sana, 0.6B": {"blocks.21.attn.qkv": (3456, 1152)},
    "PixArt, Alpha, 0.6B": {"csize_embedder.mlp.0": (4, 4), "blocks.0.attn.proj": (1152, 1152)},
    "Cosmos or Anima, 2B": {"blocks.0.self_attn.q_proj": (2048, 2048)},
    "Anima": {"llm_adapter.blocks.0.self_attn.q_proj": (1024, 1024)},
}


def shown(tmp_path, name, modules):
    keys = {f"diffusion_model.{module}": size for module, size in modules.items()}
    said = {"modelspec.architecture": "sana"} if name.startswith("Sana") else {}
    said = {"modelspec.architecture": "pixart"} if name.startswith("PixArt") else said
    return saved(tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors", pairs(keys, NEW, rank=1), said)


@pytest.mark.parametrize("words", SHOWN)
def test_two_models_of_one_width_are_told_by_their_blocks(words, tmp_path):
    """Words that end in a space are told in a second way."""
    path = shown(tmp_path, words, SHOWN[words])
    assert described(lm.load(path)) == words.strip()
    assert f"for {words.strip()}" in str(lm.inspect(path))


APART = [
    ("Stable Diffusion 3.5, medium", "Stable Diffusion 3, medium"),
    ("Stable Diffusion 3.5, large", "Stable Diffusion 3, medium"),
    ("Sana, 4.8B", "Sana, 0.6B"),
]


@pytest.mark.parametrize("pair", APART)
def test_two_models_that_their_blocks_tell_apart_are_not_mixed_unasked(pair, tmp_path):
    paths = [shown(tmp_path, words, SHOWN[words]) for words in pair]
    with pytest.raises(lm.IncompatibleError, match="two different models"):
        lm.combine(paths, "cat")


@pytest.mark.parametrize("words", ["Stable Diffusion 3.5, medium", "Stable Diffusion 3, medium"])
def test_what_no_block_tells_goes_with_either(words, tmp_path):
    names = (words, "Stable Diffusion 3 or 3.5, medium")
    assert lm.combine([shown(tmp_path, name, SHOWN[name]) for name in names], "cat").adapter


@pytest.mark.parametrize(
    ("name", "words"),
    {
        "sd35_medium_ink": "Stable Diffusion 3.5, medium",
        "sd3.5m-oil": "Stable Diffusion 3.5, medium",
        "stable-diffusion-3-5-medium": "Stable Diffusion 3.5, medium",
        "sd3_medium_ink": "Stable Diffusion 3, medium",
        "sd3-ink": "Stable Diffusion 3 or 3.5, medium",
        "ink_v3.5": "Stable Diffusion 3 or 3.5, medium",
    }.items(),
)
def test_a_name_says_which_stable_diffusion_it_is_for(name, words, tmp_path):
    keys = {"diffusion_model.joint_blocks.2.x_block.attn.qkv": (4608, 1536)}
    path = saved(tmp_path / f"{name}.safetensors", pairs(keys, NEW, rank=1))
    assert described(lm.load(path)) == words


def test_modules_are_believed_before_names(tmp_path):
    keys = {"diffusion_model.joint_blocks.2.x_block.attn2.qkv": (4608, 1536)}
    path = saved(tmp_path / "sd3_medium.safetensors", pairs(keys, NEW, rank=1))
    assert described(lm.load(path)) == "Stable Diffusion 3.5, medium"


def chosen(numbers, width, name="double_blocks.{}.img_attn.proj"):
    return {f"diffusion_model.{name}".format(n): (width, width) for n in numbers}


SELF = "blocks.{}.self_attn.q"
FOUR = "Flux.1 12B or Flux.2 4B or Chroma 8.9B or HunyuanVideo 13B, the tensors do not tell"
DEEP = {  # what is trained of a model -> what is said of it
    "a block that the Flux.2 of this width lacks": (chosen([7], 3072), FOUR.replace(" or Flux.2 4B", "")),
    "as many as the Flux.2 of another width": (chosen(range(8), 3072), FOUR.replace(" or Flux.2 4B", "")),
    "five of Flux.1, or all of the smallest Flux.2": (chosen(range(5), 3072), FOUR),
    "the last of Flux.1 alone": (chosen([18], 3072), FOUR.replace(" or Flux.2 4B", "")),
    "all of Flux.1": (chosen(range(19), 3072), "Flux.1 12B or Chroma 8.9B, the tensors do not tell"),
    "all of Sana 0.6B, or PixArt": (
        chosen(range(28), 1152, "transformer_blocks.{}.attn1.to_q"),
        "PixArt 0.6B or Sana 0.6B, the tensors do not tell",
    ),
    "a block that the Wan of this width lacks": (
        chosen([39], 1536, SELF),
        "Wan, unlike the published models",
    ),
    "HunyuanImage": (
        chosen([19], 3584),
        "HunyuanVideo, unlike the published models",
    ),
    "a block that it has": (chosen([29], 1536, SELF), "Wan, 1.3B"),
}


@pytest.mark.parametrize("name", DEEP)
def test_blocks_that_are_chosen_are_no_other_model(name, tmp_path):
    shapes, said = DEEP[name]
    assert described(lm.load(saved(tmp_path / "a.safetensors", pairs(shapes, NEW, rank=1)))) == said


CROSS = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
LEVEL = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
INNER = "down_blocks.2.attentions.0.transformer_blocks.5.attn1.to_q"
UNETS = {  # name of a file -> (a module, its size, what the file is called)
    "one": (CROSS, (640, 768), "Stable Diffusion 1"),
    "two": (CROSS, (640, 1024), "Stable Diffusion 2"),
    "early": (LEVEL, (320, 320), "Stable Diffusion 1 or Stable Diffusion 2, the tensors do not tell"),
    "xl": (CROSS, (640, 2048), "Stable Diffusion XL"),
    "deep": (INNER, (1280, 1280), "Stable Diffusion XL"),
    "refiner": (CROSS, (768, 1280), "Stable Diffusion XL's refiner"),
    "small": (CROSS.replace("attn2.to_k", "attn1.to_q"), (640, 640), ""),
    "strange": (CROSS, (640, 4096), ""),
}


def unet(tmp_path, name, prefix="unet."):
    path, size, _ = UNETS[name]
    return saved(tmp_path / f"{name}.safetensors", pairs({f"{prefix}{path}": size}, NEW, rank=1))


@pytest.mark.parametrize("prefix", ["unet.", "base_model.model."])
@pytest.mark.parametrize("name", UNETS)
def test_a_unet_is_told_by_the_width_of_what_describes_an_image_and_by_its_blocks(name, prefix, tmp_path):
    path = unet(tmp_path, name, prefix)
    assert described(lm.load(path, "rank", optional=True)) == UNETS[name][2]


MIXED = {  # names of two files -> how they are refused, or ""
    "one two": "has two sizes",
    "one xl": "has two sizes",
    "early xl": "allow_base_mismatch=True",
    "two deep": "allow_base_mismatch=True",
    "early deep": "allow_base_mismatch=True",
    "one early": "",
    "deep xl": "",
    "small xl": "",
}


@pytest.mark.parametrize("names", MIXED)
def test_unets_of_two_models_are_not_mixed_unasked(names, tmp_path):
    """Sources that share no module passed for other layers of one model."""
    paths, words = [unet(tmp_path, name) for name in names.split()], MIXED[names]
    if not words:
        assert lm.combine(paths, "cat", allow_disjoint=True).adapter
        return
    for order in (paths, paths[::-1]):
        with pytest.raises(lm.IncompatibleError, match=f"two different models.*{words}"):
            lm.combine(order, "cat")
    if "allow" in words:
        assert lm.combine(paths, "cat", allow_base_mismatch=True).adapter


PEFT = {  # what an adapter says of its base -> what it is called; the names could be any model's
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": "Wan 2.2, T2V 14B",
    "timm/vit_giant": "",
    None: "",
}


def peft(folder, base):
    size = {"base_model.model.blocks.0.attn1.to_q": (5120, 5120)}
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["to_q"]}))
    saved(folder / "adapter_model.safetensors", pairs(size, NEW, rank=1))
    return folder


@pytest.mark.parametrize("base", PEFT)
def test_a_folder_of_peft_is_of_the_image_model_that_it_names(base, tmp_path):
    assert described(lm.load(peft(tmp_path / "a", base))) == PEFT[base]


def test_folders_of_peft_for_two_models_are_not_mixed_unasked(tmp_path):
    base = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
    high, low = (peft(tmp_path / f"ink_{noise}", base) for noise in ("HN", "LN"))
    with pytest.raises(lm.IncompatibleError, match=r"high noise.*low noise"):
        lm.combine([high, low], "cat")
    comfy = wan(tmp_path, "wan_low_noise", (5120, 5120))
    with pytest.raises(lm.IncompatibleError, match=r"high noise.*low noise"):
        lm.combine([high, comfy], "cat", format="comfy")
    assert lm.combine([low, comfy], "cat", format="comfy", alpha="rank").adapter
