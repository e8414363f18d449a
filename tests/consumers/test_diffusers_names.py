"""What diffusers' own loader does with files of every name and form, and that `check` says so."""

import shlex
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from tests.consumers.pipelines import applied
from tests.helpers.dialects import normal, pairs, saved
from tests.helpers.files import Cli
from tests.helpers.tiny_models import QUIET

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match")]

OWN = ("lora_A", "lora_B")
ATTENTION = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1"
CONV = "unet.down_blocks.0.resnets.0.conv1"
CLIP = "text_encoder.text_model.encoder.layers.0"
SD = {f"{ATTENTION}.to_q": (16, 16), CONV: (8, 8, 3, 3), f"{CLIP}.self_attn.q_proj": (16, 16)}
UNET = {name: shape for name, shape in SD.items() if name.startswith("unet.")}
Q = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
K = "lora_unet_down_blocks_0_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_0"
FLUX = "transformer.transformer_blocks.0"
SINGLE = "transformer.single_transformer_blocks.0"
DOUBLE = "lora_unet_double_blocks_0"
LINEAR2 = "lora_unet_single_blocks_0_linear2"  # by its sizes a module of Flux alone
BLOCKS = {f"{DOUBLE}_img_attn_proj": (32, 32), f"{DOUBLE}_txt_mlp_2": (32, 128), LINEAR2: (32, 160)}
ONE = {f"{DOUBLE}_txt_attn_proj": (32, 32)}
COMFY = {
    "diffusion_model.double_blocks.0.img_attn.proj": (32, 32),
    "diffusion_model.single_blocks.0.linear2": (32, 160),
}
T5 = {"lora_te3_encoder_block_0_layer_0_SelfAttention_q": (8, 8)}
XLABS = ("down", "up")


def form(stem, kind, outs=16, ins=16):
    """One module (of a convolution, 8 × 8 with a kernel of 3 × 3) in a form that is no plain pair."""
    rng = np.random.default_rng(3)
    parts = {
        "LoHa": {f"hada_w{i}_{x}": s for i in (1, 2) for x, s in {"a": (outs, 2), "b": (2, ins)}.items()},
        "LoKr": {"lokr_w1": (4, 4), "lokr_w2": (outs // 4, ins // 4)},
        "Tucker": {
            "lora_down.weight": (2, 8, 1, 1),
            "lora_mid.weight": (2, 2, 3, 3),
            "lora_up.weight": (8, 2, 1, 1),
        },
        "difference": {"diff": (outs, ins)},
        "bias": {"diff_b": (outs,)},
        "norm": {"w_norm": (outs,), "b_norm": (outs,)},
    }[kind]
    return {f"{stem}.{part}": normal(rng, *shape) for part, shape in parts.items()}


def renamed(state, *changes):
    for old, new in changes:
        state = {key.replace(old, new): value for key, value in state.items()}
    return state


PROCESSORS = pairs({f"{ATTENTION}.processor.to_q_lora": (16, 16)}, XLABS)
OLD_TEXT = renamed(
    pairs({f"{CLIP}.self_attn.out_proj": (16, 16), f"{CLIP}.mlp.fc1": (32, 16)}, OWN),
    ("lora_A", "lora_linear_layer.down"),
    ("lora_B", "lora_linear_layer.up"),
)
SOME_ALPHAS = pairs({Q: (16, 16)}, alpha=1.0) | pairs({K: (8, 8, 3, 3)})
FLUX_OWN = {f"{FLUX}.attn.to_q": (32, 32), f"{SINGLE}.proj_out": (32, 160)}
FLUX_OWN |= {f"{CLIP}.self_attn.{x}_proj": (16, 16) for x in "kv"}
ANOTHER = pairs({f"{CLIP}.self_attn.q_proj": (16, 16)}, OWN, alpha=2.0)
SD_FILES = {  # name of the file -> (its tensors, what diffusers does beside loading it as it is meant)
    "its own": (pairs(SD, OWN), None),
    "its own, of text the mlp alone": (pairs({f"{CLIP}.mlp.fc1": (32, 16)}, OWN), "rejects"),
    "kohya, of text the mlp alone": (pairs({f"{TEXT}_mlp_fc1": (32, 16)}, alpha=1.0), None),
    "its own with alphas": (pairs(SD, OWN, alpha=1.0), "rejects"),
    "its own of old": (renamed(pairs(UNET, OWN), ("lora_A", "lora.down"), ("lora_B", "lora.up")), None),
    "processors": (PROCESSORS, None),
    "processors without unet": (renamed(PROCESSORS, ("unet.", "")), "ignores"),
    "a text encoder of old": (OLD_TEXT, None),
    "DoRA in kohya": (pairs({Q: (16, 16)}) | {f"{Q}.dora_scale": np.ones((16, 1), np.float32)}, "ignores"),
    "its own in LoKr": (form(f"{ATTENTION}.to_q", "LoKr"), "rejects"),
    "PEFT's in a part": (renamed(pairs(SD, OWN), ("unet.", "unet.base_model.model.")), "rejects"),
    "kohya": (pairs({Q: (16, 16), K: (8, 8, 3, 3)}, alpha=1.0), None),
    "kohya, an alpha of 0": (pairs({Q: (16, 16), K: (8, 8, 3, 3)}, alpha=0.0), "scales"),
    "kohya, some with an alpha": (SOME_ALPHAS, "scales"),
    "kohya, text of two alphas": (
        pairs({f"{TEXT}_self_attn_{x}_proj": (16, 16) for x in ("q", "out")}, alpha=1.0)
        | pairs({f"{TEXT}_self_attn_v_proj": (16, 16)}, alpha=3.0),
        "scales",
    ),
    "kohya, text without out_proj": (
        pairs({f"{TEXT}_mlp_fc1": (32, 16), f"{TEXT}_self_attn_q_proj": (16, 16)}, alpha=1.0),
        "ignores",
    ),
    **{
        f"kohya in {kind}": (form(K if kind == "Tucker" else Q, kind), "rejects")
        for kind in ("LoHa", "LoKr", "Tucker", "difference")
    },
    **{
        f"kohya with a {kind}": (pairs({K: (8, 8, 3, 3)}) | form(Q, kind), "rejects")
        for kind in ("bias", "norm")
    },
    "ComfyUI": (
        pairs({"diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q": (16, 16)}, OWN),
        "ignores",
    ),
}
FLUX_FILES = {
    "its own": (pairs(FLUX_OWN, OWN), None),
    "its own with one alpha": (pairs(FLUX_OWN, OWN, alpha=1.0), None),
    "its own with two alphas": (pairs(FLUX_OWN, OWN, alpha=1.0) | ANOTHER, "scales"),
    "its own in LoKr": (form(f"{SINGLE}.proj_out", "LoKr", 32, 160), "rejects"),
    "kohya": (pairs(BLOCKS, alpha=1.0) | pairs(ONE, alpha=5.0), None),
    "kohya, an alpha of 0": (pairs(BLOCKS, alpha=1.0) | pairs(ONE, alpha=0.0), "scales"),
    "kohya around the blocks": (pairs(BLOCKS | {"lora_unet_img_in": (32, 4)}, alpha=1.0), "ignores"),
    "kohya with T5": (pairs(BLOCKS | T5, alpha=1.0), "ignores"),
    "kohya in LoHa": (form(LINEAR2, "LoHa", 32, 160), "ignores"),
    "kohya in LoHa and pairs": (pairs(ONE) | form(LINEAR2, "LoHa", 32, 160), "rejects"),
    "kohya in differences": (form(LINEAR2, "difference", 32, 160), "ignores"),
    "kohya with a bias": (pairs(BLOCKS) | form(LINEAR2, "bias", 32, 160), "ignores"),
    "LyCORIS": (pairs({"lycoris_single_transformer_blocks_0_proj_out": (32, 160)}, alpha=1.0), "rejects"),
    "OneTrainer, attention": (
        pairs({"lora_transformer_transformer_blocks_0_attn_to_out_0": (32, 32)}, alpha=1.0),
        None,
    ),
    "OneTrainer": (
        pairs({"lora_transformer_single_transformer_blocks_0_proj_out": (32, 160)}, alpha=1.0),
        "rejects",
    ),
    "ComfyUI": (pairs(COMFY, OWN), "ignores"),
    "ComfyUI, down and up": (pairs(COMFY, alpha=1.0), None),
    "ComfyUI, T5": (
        pairs(
            COMFY | {"text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q": (8, 8)},
            alpha=1.0,
        ),
        "ignores",
    ),
    "its own T5": (
        pairs(FLUX_OWN | {"text_encoder_2.encoder.block.0.layer.0.SelfAttention.q": (8, 8)}, OWN),
        "ignores",
    ),
    "Black Forest Labs": (pairs({"double_blocks.0.img_attn.proj": (32, 32)}, OWN), "ignores"),
    "XLabs": (
        pairs({f"diffusion_model.double_blocks.0.processor.proj_lora{i}": (32, 32) for i in (1, 2)}, XLABS),
        None,
    ),
}
FILES = [("unet", name) for name in SD_FILES] + [("transformer", name) for name in FLUX_FILES]


def done(model, file):
    """What it does beside loading the file as it is meant."""
    try:
        found = applied(model, file)
    except (ValueError, KeyError):
        return "rejects"
    try:
        adapter = lm.load(file)
    except lm.IncompatibleError:  # of DoRA it loads a part
        return "ignores"
    wanted = {str(target): update.dense() for target, update in adapter.items()}
    if set(found) != set(wanted) or adapter.extras:
        return "ignores"
    close = all(np.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5) for name in wanted)
    return None if close else "scales"


@pytest.mark.parametrize(("model", "name"), FILES)
def test_it_does_what_check_says(model, name, tmp_path):
    state, wanted = {"unet": SD_FILES, "transformer": FLUX_FILES}[model][name]
    file = saved(tmp_path / "a.safetensors", state)
    does = done(model, file)
    assert does == wanted
    assert [finding.effect for finding in lm.check(file, "diffusers")] == ([] if wanted is None else [wanted])


@pytest.mark.parametrize(("model", "name"), FILES)
def test_the_command_that_check_offers_makes_what_it_loads(model, name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state, wanted = {"unet": SD_FILES, "transformer": FLUX_FILES}[model][name]
    file = saved(Path("a.safetensors"), state)
    commands = {finding.command for finding in lm.check(file, "diffusers")} - {""}
    assert wanted is not None or not commands
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "loramerge"
        assert Cli(capsys)(*words).code == 0, command
        assert done(model, Path(words[-1])) is None
        assert not lm.check(words[-1], "diffusers")


@pytest.mark.parametrize(("model", "name"), FILES)
def test_the_conversion_that_check_names_makes_what_it_loads(model, name, tmp_path):
    state, _ = {"unet": SD_FILES, "transformer": FLUX_FILES}[model][name]
    file = saved(tmp_path / "a.safetensors", state)
    for finding in lm.check(file, "diffusers"):
        _, named, format = finding.mend.partition("`loramerge convert --to ")
        if named and not finding.sentence.startswith("diffusers finds nothing"):
            out = tmp_path / "b.safetensors"
            lm.convert(file, out, format.rstrip("`"))
            assert done(model, out) is None
