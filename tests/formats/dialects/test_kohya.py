"""kohya's files: what their names, alphas and shapes mean."""

import numpy as np
import pytest

import loramerge as lm
from tests.helpers.dialects import FLUX_KOHYA, SD15, SDXL, flat, normal, pairs, product, same, saved, updates
from tests.helpers.files import Cli, read

Q = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
CANONICAL = dict(zip(flat(SD15), SD15, strict=True))
SDXL_KOHYA = {  # Stability's names, flat
    "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_out_0": (6, 6),
    "lora_unet_output_blocks_2_2_conv": (4, 4, 3, 3),
    "lora_unet_middle_block_2_out_layers_3": (4, 4, 3, 3),
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (6, 6),
    "lora_te2_text_model_encoder_layers_31_self_attn_out_proj": (8, 8),
}


@pytest.mark.parametrize("alpha", [None, 1.0, 3.0])
def test_every_module_is_read_with_its_alpha(tmp_path, alpha):
    tensors = pairs(flat(SD15), alpha=alpha)
    adapter = lm.load(saved(tmp_path / "a.safetensors", tensors))

    same(adapter, {CANONICAL[module]: update for module, update in updates(tensors).items()})
    assert adapter.dialect == "kohya"
    assert bool(adapter.oddities) == (alpha is None)


def test_sdxl_has_the_names_of_its_first_code(tmp_path):
    tensors = pairs(SDXL_KOHYA, alpha=1.0)
    adapter = lm.load(saved(tmp_path / "a.safetensors", tensors))

    same(adapter, dict(zip(SDXL, updates(tensors).values(), strict=True)))


def test_an_alpha_of_zero_or_none_is_the_rank_and_said_so(tmp_path):
    tensors = pairs({Q: (4, 3), f"{Q[:-1]}k": (4, 3)}, rank=2, alpha=0.0)
    del tensors[f"{Q}.alpha"]
    adapter = lm.load(saved(tmp_path / "a.safetensors", tensors))

    assert {slot.scale for slot in adapter.slots.values()} == {1.0}
    assert adapter.oddities == ("no module says an alpha, so the scale is 1 there, as kohya has it",)


def test_an_alpha_of_the_user_fills_a_gap_and_overrides_nothing(tmp_path):
    tensors = pairs({Q: (4, 3), f"{Q[:-1]}k": (4, 3)}, rank=2, alpha=8.0)
    del tensors[f"{Q}.alpha"]
    path = saved(tmp_path / "a.safetensors", tensors)
    whole = saved(tmp_path / "b.safetensors", pairs({Q: (4, 3)}, alpha=8.0))

    assert sorted(slot.scale for slot in lm.load(path, alpha=1).slots.values()) == [0.5, 4.0]
    with pytest.raises(lm.UsageError, match="says its own alpha"):
        lm.load(whole, alpha=1)


def test_a_convolution_through_a_small_kernel(tmp_path):
    rng, name = np.random.default_rng(3), "lora_unet_down_blocks_0_resnets_0_conv1"
    up, down, mid = normal(rng, 5, 2, 1, 1), normal(rng, 2, 4, 1, 1), normal(rng, 2, 2, 3, 3)
    parts = {"lora_up.weight": up, "lora_down.weight": down, "lora_mid.weight": mid, "alpha": np.float32(1)}
    path = saved(tmp_path / "a.safetensors", {f"{name}.{k}": np.asarray(v) for k, v in parts.items()})
    wanted = np.zeros((5, 4, 3, 3))
    for i, j, m, n in np.ndindex(5, 4, 2, 2):
        wanted[i, j] += 0.5 * up[i, m, 0, 0] * mid[m, n] * float(down[n, j, 0, 0])

    same(lm.load(path), {"unet.down_blocks.0.resnets.0.conv1": wanted.reshape(5, -1)})


def test_a_linear_layer_may_carry_the_factors_of_a_convolution(tmp_path):
    tensors = pairs({Q: (6, 4, 1, 1)}, alpha=1.0)
    adapter = lm.load(saved(tmp_path / "a.safetensors", tensors))

    assert next(iter(adapter)).kind == "linear"
    same(adapter, {CANONICAL[Q]: updates(tensors)[Q]})


def test_pairs_stacked_in_a_fused_module_are_one_update(tmp_path):
    rng, name = np.random.default_rng(5), "lora_unet_double_blocks_0_img_attn_qkv"
    downs, ups = [normal(rng, 2, 4) for _ in range(3)], [normal(rng, 4, 2) for _ in range(3)]
    tensors = {f"{name}.lora_down.{i}.weight": down for i, down in enumerate(downs)}
    tensors |= {f"{name}.lora_up.{i}.weight": up for i, up in enumerate(ups)}
    tensors[f"{name}.alpha"] = np.array(1, np.float32)
    wanted = 0.5 * np.concatenate([product(up, down) for up, down in zip(ups, downs, strict=True)])

    same(
        lm.load(saved(tmp_path / "a.safetensors", tensors)),
        {"transformer.double_blocks.0.img_attn.qkv": wanted},
    )


def test_a_model_that_is_not_known_keeps_its_flat_names(tmp_path):
    shapes = {"lora_unet_towers_0_attend_q": (4, 4), "lora_unet_towers_1_ffn_0": (8, 4)}
    path = saved(tmp_path / "a.safetensors", pairs(shapes, alpha=1.0))
    merge = lm.combine([path, path], out=tmp_path / "m.safetensors")

    assert {str(target) for target in lm.load(path)} == {"unet.towers_0_attend_q", "unet.towers_1_ffn_0"}
    assert {key.partition(".")[0] for key in read(tmp_path / "m.safetensors")} == set(shapes)
    assert {t.component for t in merge.adapter} == {"unet"}
    assert "ss_network_module" not in lm.load(tmp_path / "m.safetensors").metadata, "it is not known either"


def test_names_that_another_model_shares_with_flux_stay_flat(tmp_path):
    shapes = {**FLUX_KOHYA, "lora_unet_double_blocks_20_img_attn_qkv": (24, 8)}  # no family has so many
    adapter = lm.load(saved(tmp_path / "a.safetensors", pairs(shapes, alpha=1.0)))

    assert "unet.double_blocks_3_img_attn_qkv" in {str(target) for target in adapter}


MODULE = "lora_unet_mid_block_attentions_0_proj_in"


def test_simpletuner_names_a_unet_too(tmp_path):
    tensors = {"lycoris_mid_block_resnets_0_conv1.diff": np.ones((3, 2, 3, 3), np.float32)}
    same(
        lm.load(saved(tmp_path / "a.safetensors", tensors)),
        {"unet.mid_block.resnets.0.conv1": np.ones((3, 18))},
    )


WHOLE = {  # what has full rank -> its tensors, and those of its like that have not
    "full `.diff`": ({"diff": np.eye(6, 4, dtype="f4")}, None),
    "LoKr": (
        {"lokr_w1": np.eye(2, dtype="f4"), "lokr_w2": np.eye(3, 2, dtype="f4")},
        {
            "lokr_w1": np.eye(2, dtype="f4"),
            "lokr_w2_a": np.ones((3, 1), "f4"),
            "lokr_w2_b": np.ones((1, 2), "f4"),
        },
    ),
}


@pytest.mark.parametrize("words", WHOLE)
def test_what_has_full_rank_is_told_and_merged_only_at_a_size(words, tmp_path, capsys):
    whole, low = (
        {f"{MODULE}.{end}": value for end, value in parts.items()} if parts else None
        for parts in WHOLE[words]
    )
    source, run = saved(tmp_path / "a.safetensors", whole), Cli(capsys)
    assert lm.load(source).full == (words,)
    assert f"its 1 {words} modules are read exactly, but at full rank" in run("inspect", source).out
    done = run("combine", source, source, "-o", tmp_path / "m.safetensors")
    assert (done.code, f"holds {words}" in done.err, "--rank 16" in done.err) == (3, True, True)
    done = run("combine", source, source, "--rank", "1", "-o", tmp_path / "m.safetensors")
    assert (done.code, "cut by the rank" in done.out) == (0, True)
    all_of_it = lm.combine([source], energy=1, out=tmp_path / "one.safetensors")
    assert lm.diff(source, all_of_it.adapter).largest < 1e-6
    if low:
        assert lm.load(saved(tmp_path / "low.safetensors", low)).full == ()


def test_factors_may_be_called_a_and_b(tmp_path):
    tensors = pairs({Q: (4, 3)}, ("lora_A", "lora_B"), alpha=1.0)
    same(
        lm.load(saved(tmp_path / "a.safetensors", tensors)),
        {CANONICAL[Q]: updates(tensors, ("lora_A", "lora_B"))[Q]},
    )


REFUSED = {
    "DoRA by PEFT's name": (
        {"lora_magnitude_vector.default.weight": (6,)},
        lm.IncompatibleError,
        "DoRA.*weights of the base model",
    ),
    "DoRA": ({"dora_scale": (6, 1)}, lm.IncompatibleError, "DoRA.*weights of the base model"),
    "OFT": ({"oft_blocks": (2, 3, 3)}, lm.IncompatibleError, "OFT"),
    "GLoRA": ({"a1.weight": (2, 3)}, lm.IncompatibleError, "GLoRA"),
    "IA3": ({"on_input": (1,)}, lm.IncompatibleError, "IA3"),
    "a replaced weight": ({"set_weight": (2, 2)}, lm.IncompatibleError, "replaced weight"),
    "two forms": ({"diff": (6, 4)}, lm.SourceError, "LoRA and full `.diff` in one"),
    "an alpha of two numbers": ({"alpha": (2,)}, lm.SourceError, "not one number"),
    "another rank": ({"lora_up.weight": (6, 3)}, lm.SourceError, "do not fit together"),
    "integers": ({"lora_up.weight": None}, lm.IncompatibleError, "I8"),
}


@pytest.mark.parametrize(("parts", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_sum_of_low_rank_updates_is_refused_by_name(tmp_path, parts, error, words):
    made = {
        f"{MODULE}.{k}": np.ones((6, 2), np.int8) if v is None else np.ones(v, np.float32)
        for k, v in parts.items()
    }
    path = saved(tmp_path / "a.safetensors", pairs({MODULE: (6, 4)}) | made)

    with pytest.raises(error, match=words):
        lm.load(path)


def test_updates_of_norms_and_biases_are_summed_or_left_out_but_never_in_silence(tmp_path):
    norm, paths = "lora_te_text_model_final_layer_norm", []
    for seed in (1, 2):
        tensors = pairs({Q: (4, 4)}, alpha=2.0, seed=seed)
        tensors |= {
            f"{Q}.diff_b": np.full(4, seed, np.float32),
            f"{norm}.w_norm": np.full(3, seed, np.float32),
        }
        paths.append(saved(tmp_path / f"{seed}.safetensors", tensors))

    with pytest.raises(lm.IncompatibleError, match=r"w_norm, .*diff_b.*extras="):
        lm.combine(paths, "svd")
    assert not lm.combine(paths, "svd", extras="drop").adapter.extras
    lm.combine(paths, "svd", weights=[1, -3], extras="average", out=tmp_path / "m.safetensors")
    found = read(tmp_path / "m.safetensors")
    assert found[f"{Q}.diff_b"].tolist() == [1 - 6] * 4
    assert found[f"{norm}.w_norm"].tolist() == [1 - 6] * 3


def test_what_is_written_is_what_other_tools_read(tmp_path):
    """The formula of sd-scripts, applied to the written file: alpha / r · up @ down."""
    first = pairs(flat(SD15), alpha=1.0, seed=1)
    second = pairs(flat(SD15), alpha=8.0, rank=3, seed=2)
    paths = [saved(tmp_path / f"{i}.safetensors", t) for i, t in enumerate((first, second))]
    lm.combine(paths, weights=[1, -0.5], out=tmp_path / "m.safetensors")

    written, a, b = (updates(t) for t in (read(tmp_path / "m.safetensors"), first, second))
    assert written.keys() == a.keys()
    for name in a:
        np.testing.assert_allclose(written[name], a[name] - 0.5 * b[name], rtol=1e-5, atol=1e-5)


def test_a_file_of_kohya_says_what_its_user_interfaces_look_for(tmp_path):
    shapes = {**flat(SD15), "lora_unet_mid_block_resnets_0_conv1": (4, 4, 3, 3)}
    metadata = {
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "lycoris.kohya",
        "ss_network_dim": "128",
        "ss_output_name": "mine",
        "sshs_model_hash": "0" * 64,
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "mine",
    }
    path = saved(tmp_path / "a.safetensors", pairs(shapes, alpha=1.0), metadata)
    lm.combine([path, path], "svd", rank=3, out=tmp_path / "m.safetensors")

    found = lm.load(tmp_path / "m.safetensors").metadata
    told = {key: value for key, value in found.items() if key != "loramerge" and "_hash" not in key}
    assert {key for key in found if key.startswith("sshs_")} == {"sshs_model_hash", "sshs_legacy_hash"}
    assert told == {
        "ss_base_model_version": "sd_v1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "mine",
        "ss_output_name": "mine",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "3",
        "ss_network_alpha": "3",
        "ss_network_args": '{"conv_dim": "3", "conv_alpha": "3"}',
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_merge_has_one_alpha_whatever_its_ranks(tmp_path, dtype):
    """diffusers takes the alpha of most modules for many of the others."""
    key = f"{Q[:-1]}k"
    tensors = pairs({Q: (9, 9)}, rank=4, alpha=1.0) | pairs({key: (9, 9)}, rank=2, alpha=3.0)
    path = saved(tmp_path / "a.safetensors", tensors)
    merge = lm.combine([path, path], "cat", dtype=dtype, out=tmp_path / "m.safetensors")
    held = lm.combine([path, path], "cat", dtype=dtype)

    found, wanted = read(tmp_path / "m.safetensors"), updates(tensors)
    assert [float(found[f"{module}.alpha"]) for module in (Q, key)] == [8.0, 8.0]
    assert [found[f"{module}.lora_down.weight"].shape[0] for module in (Q, key)] == [8, 4]
    said = merge.adapter.metadata
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("Dynamic", "8")
    close = {"float32": 1e-6, "bfloat16": 1e-2, "float16": 2e-3}[dtype]
    for adapter in (merge.adapter, held.adapter):
        for module in (Q, key):
            twice = 2 * wanted[module]
            (dense,) = (u.dense() for t, u in adapter.items() if t.path.endswith(f"to_{module[-1]}"))
            assert np.linalg.norm(dense - twice) < close * np.linalg.norm(twice)
    assert merge.report.to_dict() == held.report.to_dict()
    assert all(module.rounding_error < close for module in merge.report.modules)


def test_a_second_text_encoder_means_sdxl(tmp_path):
    """Without deep layers the U-Net does not tell."""
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    shapes = {name: (4, 4), "lora_te2_text_model_encoder_layers_0_mlp_fc1": (4, 4)}
    path = saved(tmp_path / "a.safetensors", pairs(shapes, alpha=1.0))
    lm.combine([path], out=tmp_path / "m.safetensors")

    assert {key.partition(".")[0] for key in read(tmp_path / "m.safetensors")} == set(shapes)


def test_models_of_two_versions_are_not_merged_unasked(tmp_path):
    paths = [
        saved(tmp_path / f"{v}.safetensors", pairs({Q: (4, 4)}, alpha=1.0), {"ss_base_model_version": v})
        for v in ("sd_v1", "sd_v2")
    ]
    with pytest.raises(lm.IncompatibleError, match=r"sd_v1.*sd_v2.*allow_base_mismatch=True"):
        lm.combine(paths)
    assert len(lm.combine(paths, allow_base_mismatch=True).adapter) == 1
