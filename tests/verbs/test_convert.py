"""Conversions: the same bytes within a format, the same ΔW between formats."""

import json

import numpy as np
import pytest
from safetensors import safe_open

import loramerge as lm
from tests.helpers.dialects import ATTENTION, FLUX, SD15, SDXL, flat, pairs, same, saved, updates
from tests.helpers.files import Cli, content, folder, read

NEW = ("lora_A", "lora_B")
COMFY = {
    "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q": (6, 4),
    "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1": (6, 4),
}
METADATA = {f"ss_{n}": str(n) for n in range(12)} | {"sshs_model_hash": "a" * 64, "modelspec.title": "mine"}
SOURCES = {  # format -> a file of it
    "kohya": pairs(flat(SD15), alpha=1.0) | {"lora_te_text_model_final_layer_norm.w_norm": np.ones(3)},
    "diffusers": pairs(SD15, NEW),
    "comfy": pairs(COMFY, NEW, alpha=3.0),
}


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Cli(capsys)


@pytest.mark.parametrize("name", SOURCES)
def test_within_a_format_every_tensor_keeps_its_bytes_and_all_metadata_is_kept(tmp_path, name):
    source = saved(tmp_path / "a.safetensors", SOURCES[name], METADATA)
    done = lm.convert(source, tmp_path / "b.safetensors", name)

    assert done.copied
    assert done.error == 0
    before, after = (read(path) for path in (source, tmp_path / "b.safetensors"))
    assert {k: (v.dtype, v.shape, v.tobytes()) for k, v in before.items()} == {
        k: (v.dtype, v.shape, v.tobytes()) for k, v in after.items()
    }
    with safe_open(tmp_path / "b.safetensors", framework="numpy") as file:
        assert file.metadata() == METADATA


def test_between_folder_and_file_a_diffusers_lora_is_copied_too(tmp_path):
    settings = {"unet.r": 4, "unet.lora_alpha": 8}
    told = METADATA | {"lora_adapter_metadata": json.dumps(settings)}
    (tmp_path / "a").mkdir()
    tensors = pairs({name: shape for name, shape in SD15.items() if name.startswith("unet.")}, NEW, rank=4)
    weights = "pytorch_lora_weights.safetensors"
    saved(tmp_path / "a" / weights, tensors, told)
    one = lm.convert(tmp_path / "a", tmp_path / "b.safetensors", "diffusers")
    other = lm.convert(tmp_path / "b.safetensors", tmp_path / "c", "diffusers")

    assert one.copied
    assert other.copied
    assert {slot.scale for slot in one.adapter.slots.values()} == {2.0}
    for path in (tmp_path / "b.safetensors", tmp_path / "c" / weights):
        found = read(path)
        assert {k: v.tobytes() for k, v in found.items()} == {k: v.tobytes() for k, v in tensors.items()}
        with safe_open(path, framework="numpy") as file:
            assert file.metadata() == told


def test_between_folder_and_file_peft_keeps_the_bytes_of_tensors_at_scale_one(tmp_path):
    source = folder(tmp_path / "a", r=2, lora_alpha=2)
    lm.convert(source, tmp_path / "b.safetensors", "peft")
    lm.convert(tmp_path / "b.safetensors", tmp_path / "c", "peft")
    before = read(source / "adapter_model.safetensors")

    for path in (tmp_path / "b.safetensors", tmp_path / "c/adapter_model.safetensors"):
        after = read(path)
        assert {k: v.tobytes() for k, v in after.items()} == {k: v.tobytes() for k, v in before.items()}
    assert lm.diff(source, tmp_path / "c").largest == 0


def test_a_peft_folder_is_copied_with_its_config(tmp_path):
    source = folder(tmp_path / "a", lora_alpha=7, some_new_setting={"a": 1})
    done = lm.convert(source, tmp_path / "b", "peft")

    assert done.copied
    assert content(source)["adapter_config.json"] == content(tmp_path / "b")["adapter_config.json"]
    assert lm.diff(source, tmp_path / "b").largest == 0


ALPHAS = [None, 1.0, 3.0]


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("shapes", [SD15, SDXL, FLUX], ids=["SD 1.5", "SDXL", "Flux"])
@pytest.mark.parametrize("way", [("kohya",), ("comfy",), ("kohya", "comfy"), ("comfy", "kohya")], ids=str)
def test_there_and_back_is_the_same_update(tmp_path, shapes, way, alpha):
    tensors = pairs(shapes, NEW, alpha=alpha)
    source = lm.load(saved(tmp_path / "a.safetensors", tensors))
    path = source.provenance.files[0]
    for to in (*way, "diffusers"):
        done = lm.convert(path, tmp_path / f"{to}.safetensors", to, overwrite=True)
        assert done.error < 1e-6
        path = tmp_path / f"{to}.safetensors"

    wanted = dict(updates(tensors, NEW))
    if shapes is FLUX:  # what a fused module has beside is zero
        wanted |= {str(t): np.zeros(u.shape) for t, u in done.adapter.items() if str(t) not in wanted}
    same(done.adapter, wanted, 1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_kohya_keeps_factors_and_puts_the_scale_into_alpha(tmp_path, dtype):
    tensors = pairs(SD15, NEW, rank=3, alpha=2.0, dtype=dtype)
    lm.convert(saved(tmp_path / "a.safetensors", tensors), tmp_path / "k.safetensors", "kohya")

    found = read(tmp_path / "k.safetensors")
    assert {float(v) for k, v in found.items() if k.endswith(".alpha")} == {2.0}
    assert sorted(
        v.tobytes() for k, v in found.items() if "lora_" in k.rpartition(".weight")[0][-10:]
    ) == sorted(v.tobytes() for k, v in tensors.items() if not k.endswith(".alpha"))


def two_ranks(tmp_path):
    tensors = pairs({f"lora_unet_{ATTENTION.replace('.', '_')}": (8, 8)}, rank=8, alpha=1.0)
    tensors |= pairs({"lora_unet_mid_block_resnets_0_conv1": (8, 8, 3, 3)}, rank=2, alpha=1.0)
    tensors |= pairs({"lora_unet_mid_block_resnets_1_conv1": (8, 8, 3, 3)}, rank=1, alpha=1.0)
    return saved(tmp_path / "a.safetensors", tensors)


RANKS = {  # format, profile -> the ranks that modules of rank 8, 2 and 1 are written with
    ("kohya", None): [1, 2, 8],
    ("kohya", "compact"): [1, 2, 8],
    ("diffusers", None): [1, 2, 8],
    ("diffusers", "portable"): [8, 8, 8],
    ("peft", None): [8, 8, 8],
    ("peft", "compact"): [1, 2, 8],
}


@pytest.mark.parametrize(("to", "profile"), RANKS, ids=str)
def test_a_profile_says_whether_modules_keep_ranks_of_their_own(tmp_path, to, profile):
    source, out = two_ranks(tmp_path), tmp_path / "b.safetensors"
    done = lm.convert(source, tmp_path / "b" if to == "peft" else out, to, profile=profile)

    assert sorted(slot.rank for slot in done.adapter.slots.values()) == RANKS[to, profile]
    assert lm.diff(source, done.adapter).largest < 1e-6
    padded = [note for note in done.notes if "24 units instead of 11: profile='compact'" in note]
    assert len(padded) == (RANKS[to, profile] == [8, 8, 8])


def test_save_pads_as_before(tmp_path):
    lm.save(lm.load(two_ranks(tmp_path)), tmp_path / "d.safetensors", format="diffusers")
    assert {slot.rank for slot in lm.load(tmp_path / "d.safetensors").slots.values()} == {8}


def test_the_profile_is_asked_for_by_name(cli, tmp_path):
    two_ranks(tmp_path)
    assert cli("convert", "a.safetensors", "p", "--to", "peft").code == 0
    assert "padded with zeros to rank 8" in cli.err
    assert cli("convert", "a.safetensors", "q", "--to", "peft", "--profile", "compact").code == 0
    assert "padded" not in cli.err
    with pytest.raises(lm.UsageError, match="portable"):
        lm.convert(tmp_path / "a.safetensors", tmp_path / "r", "peft", profile="small")
    folder(tmp_path / "language")
    cli("convert", "language", "m", "--to", "mlx", "--profile", "compact").refused(2, "ranks of their own")


def test_what_lies_beside_a_merge_and_is_left_behind_is_said(cli, tmp_path):
    """A record and masks are of the files that they lie beside."""
    for name in "ab":
        folder(tmp_path / name)
    assert cli("combine", "a", "b", "--method", "mergevla", "-o", "merged").code == 0, cli.err
    for to, out in (("mlx", "x"), ("peft", "y")):
        assert cli("convert", "merged", out, "--to", to).code == 0, cli.err
        assert "loramerge.json (how it was merged, for replay) is left behind" in cli.err
        assert "masks (the masks of its tasks, for restore) is left behind" in cli.err
        assert not (tmp_path / out / "loramerge.json").exists()
    assert cli("convert", "merged", "z", "--to", "peft", "--json").code == 0
    assert len([note for note in cli.json()["notes"] if "left behind" in note]) == 2


def test_a_record_in_a_header_that_is_rewritten_is_left_behind(cli, tmp_path):
    folder(tmp_path / "a")
    cli("combine", "a", "-o", "m.safetensors")
    assert cli("convert", "m.safetensors", "n.safetensors", "--to", "peft").code == 0, cli.err
    assert "left behind" not in cli.err
    assert cli("convert", "m.safetensors", "x", "--to", "mlx").code == 0, cli.err
    assert "the record in its header" in cli.err
    assert cli("convert", "a", "c", "--to", "peft").code == 0, cli.err
    assert "left behind" not in cli.err


def test_a_peft_adapter_of_a_unet_becomes_kohyas_and_comes_back(tmp_path):
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    values = {f"base_model.model.{name}.lora_{x}.weight": np.eye(3, dtype=np.float32) for x in "AB"}
    source = folder(tmp_path / "a", values, r=3, lora_alpha=6)
    kohya = lm.convert(source, tmp_path / "k.safetensors", "kohya")
    back = lm.convert(tmp_path / "k.safetensors", tmp_path / "p", "peft")

    assert {str(t) for t in kohya.adapter} == {f"unet.{name}"}
    assert lm.diff(source, back.adapter).largest < 1e-6
    config = json.loads((tmp_path / "p/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 3)


REFUSED = {  # arguments of `convert` of a file, and words of the sentence
    "a language model": (lambda p: (folder(p / "a"), p / "x.safetensors", "kohya"), 3, "no image model"),
    "several models in PEFT": (
        lambda p: (saved(p / "a.safetensors", pairs(flat(SD15))), p / "x", "peft"),
        3,
        "several models (text_encoder, unet)",
    ),
    "flat names in diffusers": (
        lambda p: (saved(p / "a.safetensors", pairs({"lora_unet_x_y": (2, 2)})), p / "x", "diffusers"),
        3,
        "unet.x_y",
    ),
    "a transformer of an unknown model": (
        lambda p: (
            saved(p / "a.safetensors", pairs({"transformer.transformer_blocks.0.attn.to_q": (2, 2)}, NEW)),
            p / "x.safetensors",
            "kohya",
        ),
        3,
        "which nothing in the files tells apart",
    ),
    "a second transformer in kohya": (
        lambda p: (
            saved(p / "a.safetensors", pairs({"transformer_2.blocks.0.q": (2, 2)}, NEW)),
            p / "x.safetensors",
            "kohya",
        ),
        3,
        "transformer_2.blocks.0.q",
    ),
    "an unknown text encoder in diffusers": (
        lambda p: (saved(p / "a.safetensors", pairs({"lora_te_layers_0_mlp": (2, 2)})), p / "x", "diffusers"),
        3,
        "text_encoder.layers_0_mlp",
    ),
    "a folder of kohya": (
        lambda p: (saved(p / "a.safetensors", pairs(SD15, NEW)), p / "x", "kohya"),
        2,
        "one file",
    ),
    "norms in diffusers": (
        lambda p: (saved(p / "a.safetensors", SOURCES["kohya"]), p / "x", "diffusers", "--extras", "first"),
        3,
        "no place in a diffusers LoRA",
    ),
    "norms, not decided": (
        lambda p: (saved(p / "a.safetensors", SOURCES["kohya"]), p / "x", "diffusers"),
        3,
        "--extras",
    ),
}


@pytest.mark.parametrize(("make", "code", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_converted_is_refused_and_leaves_nothing(cli, tmp_path, make, code, words):
    source, out, to, *more = make(tmp_path)
    before = content(tmp_path)
    cli("convert", source, out, "--to", to, *more).refused(code, words)
    assert content(tmp_path) == before


def test_values_too_small_for_the_type_are_not_lost_in_silence(cli, tmp_path):
    tensors = pairs({f"unet.{ATTENTION}": (64, 64)}, NEW)
    tensors[f"unet.{ATTENTION}.lora_B.weight"] *= np.where(np.arange(64) == 63, 1.0, 1e-9)[:, None].astype(
        "f4"
    )
    tensors[f"unet.{ATTENTION}.lora_B.weight"][63] = 1e-9
    tensors[f"unet.{ATTENTION}.lora_A.weight"] *= 1e-3
    saved(tmp_path / "a.safetensors", tensors)
    before = content(tmp_path)
    cli("convert", "a.safetensors", "b.safetensors", "--to", "diffusers", "--dtype", "float16").refused(
        4, "float32"
    )
    assert content(tmp_path) == before


def test_the_command_says_what_it_did(cli, tmp_path):
    saved(tmp_path / "a.safetensors", pairs(SD15, NEW))
    assert cli("convert", "a.safetensors", "b.safetensors", "--to", "kohya").code == 0
    assert "a diffusers LoRA → a kohya LoRA: 5 modules" in cli.out
    assert "the scale is 1 there" in cli.err
    assert cli("convert", "b.safetensors", "c", "--to", "diffusers", "--json").code == 0
    assert cli.json()["largest_error"] == 0
    assert cli("convert", "b.safetensors", "c", "--to", "diffusers", "--overwrite", "-q").out == "c\n"
    assert cli("inspect", "b.safetensors", "c").code == 0
    assert "a kohya LoRA" in cli.out


def test_its_errors_speak_of_its_own_settings(tmp_path):
    """What is `format` elsewhere is `to` here; and the model of a U-Net is known."""
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    path = saved(tmp_path / "a.safetensors", pairs({stem: (640, 768)}))
    with pytest.raises(lm.UsageError, match=r"^to='musubi-tuner': .* is for Stable Diffusion 1, .* to= also"):
        lm.convert(path, tmp_path / "b.safetensors", "musubi-tuner")
    with pytest.raises(lm.IncompatibleError, match=r"attn2.to_k has no name in .* another to="):
        lm.convert(path, tmp_path / "b.safetensors", "bare")
    with pytest.raises(lm.UsageError, match=r"^format='musubi-tuner'"):
        lm.combine([path], format="musubi-tuner")
