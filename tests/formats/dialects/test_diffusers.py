"""diffusers' files, in its four spellings, with and without settings."""

import json

import numpy as np
import pytest

import loramerge as lm
from tests.helpers.dialects import ATTENTION, FLUX, SD15, SDXL, pairs, same, saved, updates
from tests.helpers.files import read

NEW = ("lora_A", "lora_B")
NOTE = "no module says an alpha, so the scale is 1 there, as diffusers has it"


@pytest.mark.parametrize("shapes", [SD15, SDXL, FLUX], ids=["SD 1.5", "SDXL", "Flux"])
def test_a_file_without_settings_has_scale_one_and_says_so(tmp_path, shapes):
    tensors = pairs(shapes, NEW)
    adapter = lm.load(saved(tmp_path / "a.safetensors", tensors))

    same(adapter, updates(tensors, NEW))
    assert adapter.oddities == (NOTE,)


SPELLINGS = {  # the file's name of a module -> ours
    "lora.down": {"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0": "lora"},
    "lora_linear_layer": {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj": "lora_linear_layer"},
}
OLD = {
    f"{module}.{name}.{{}}.weight": f"{module}"
    for names in SPELLINGS.values()
    for module, name in names.items()
} | {
    "unet.mid_block.attn1.processor.to_v_lora.{}.weight": "unet.mid_block.attn1.to_v",
    "up_blocks.1.attn2.processor.to_out_lora.{}.weight": "unet.up_blocks.1.attn2.to_out.0",
    "text_encoder.text_model.encoder.layers.1.self_attn.to_out_lora.{}.weight": (
        "text_encoder.text_model.encoder.layers.1.self_attn.out_proj"
    ),
    f"unet.{ATTENTION}.lora_A.default.weight": "",
}


def test_older_spellings_mean_the_same_modules(tmp_path):
    rng, tensors, wanted = np.random.default_rng(1), {}, {}
    for pattern, name in OLD.items():
        if name:
            up, down = rng.standard_normal((4, 2)), rng.standard_normal((2, 3))
            tensors |= {pattern.format("up"): up, pattern.format("down"): down}
            wanted[name] = up @ down
    tensors |= {f"unet.{ATTENTION}.lora_{x}.default.weight": np.eye(3) for x in "AB"}

    same(lm.load(saved(tmp_path / "a.safetensors", tensors)), wanted | {f"unet.{ATTENTION}": np.eye(3)})


def settings(**parts):
    return {
        "lora_adapter_metadata": json.dumps(
            {f"{p}.{k}": v for p, each in parts.items() for k, v in each.items()}
        )
    }


def test_settings_give_every_part_its_scale(tmp_path):
    q, k, fc = (
        f"unet.{ATTENTION}",
        f"unet.{ATTENTION[:-1]}k",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    )
    tensors = pairs({q: (4, 4), fc: (4, 4)}, NEW, rank=4) | pairs({k: (4, 4)}, NEW, rank=2)
    metadata = settings(
        unet={"r": 4, "lora_alpha": 8, "rank_pattern": {"to_k": 2}, "use_rslora": False},
        text_encoder={"r": 4, "lora_alpha": 6, "use_rslora": True, "base_model_name_or_path": "a/b"},
    )
    adapter = lm.load(saved(tmp_path / "a.safetensors", tensors, metadata))

    assert {str(t): slot.scale for t, slot in adapter.slots.items()} == {q: 2.0, k: 4.0, fc: 3.0}
    assert adapter.oddities == ()
    assert adapter.base.name == "a/b"


REFUSED = {
    "another rank": (settings(unet={"r": 3, "lora_alpha": 3}), lm.SourceError, "rank 3.*rank 2"),
    "no rank": (settings(unet={"lora_alpha": 3}), lm.SourceError, "does not give r"),
    "DoRA": (
        settings(unet={"r": 2, "lora_alpha": 2, "use_dora": True}),
        lm.SourceError,
        "lora_magnitude_vector",
    ),
    "another part": (settings(transformer={"r": 2, "lora_alpha": 2}), lm.SourceError, "does not give r"),
    "no JSON": ({"lora_adapter_metadata": "{"}, lm.SourceError, "lora_adapter_metadata"),
}


@pytest.mark.parametrize(("metadata", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_settings_that_cannot_be_true_are_refused(tmp_path, metadata, error, words):
    path = saved(tmp_path / "a.safetensors", pairs({f"unet.{ATTENTION}": (4, 4)}, NEW), metadata)
    with pytest.raises(error, match=words):
        lm.load(path)


def test_a_folder_of_diffusers_is_an_adapter_and_so_is_its_merge(tmp_path):
    for name in "ab":
        saved(tmp_path / name / "pytorch_lora_weights.safetensors", pairs(SD15, NEW, seed=ord(name)))
    merge = lm.combine([tmp_path / "a", tmp_path / "b"], weights=[2, 1], out=tmp_path / "m")

    found = {path.name for path in (tmp_path / "m").iterdir()}
    assert found == {"pytorch_lora_weights.safetensors", "loramerge.json"}
    first, second, made = (
        updates(read(tmp_path / name / "pytorch_lora_weights.safetensors"), NEW) for name in "abm"
    )
    for name, update in made.items():
        np.testing.assert_allclose(update, 2 * first[name] + second[name], atol=1e-5)
    assert merge.adapter.dialect == "diffusers"
    assert len(lm.combine([tmp_path]).adapter) == len(SD15), "a folder of such folders is a collection"


def test_ranks_that_differ_are_settings_of_their_part(tmp_path):
    """Without them, older versions scale such modules by another rank."""
    tensors = pairs({f"unet.{ATTENTION}": (9, 9)}, NEW, rank=4) | pairs(
        {f"unet.{ATTENTION[:-1]}k": (9, 9)}, NEW, rank=2
    )
    path = saved(tmp_path / "a.safetensors", tensors)
    lm.combine([path], "cat", profile="compact", out=tmp_path / "m.safetensors")
    lm.combine([path], "cat", out=tmp_path / "p.safetensors")

    compact, portable = (lm.load(tmp_path / f"{n}.safetensors") for n in "mp")
    assert json.loads(compact.metadata["lora_adapter_metadata"])["unet.alpha_pattern"]
    assert "lora_adapter_metadata" not in portable.metadata
    for made, ranks in ((compact, {4, 2}), (portable, {4})):
        assert {slot.rank for slot in made.slots.values()} == ranks
        same(made, updates(tensors, NEW))


def test_gpt2_under_pefts_names_is_not_taken_for_a_pipeline(tmp_path):
    path = saved(tmp_path / "a.safetensors", pairs({"transformer.h.0.attn.c_attn": (4, 4)}, NEW))
    assert lm.load(path, alpha=2).dialect == "peft"


def test_a_file_of_a_unet_alone_keeps_its_names_and_gets_others_for_a_program(tmp_path):
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    path = saved(tmp_path / "a.safetensors", pairs({name: (8, 8)}, ("lora_A", "lora_B")))
    lm.combine([path, path], out=tmp_path / "m.safetensors")
    assert set(read(tmp_path / "m.safetensors")) == set(read(path))
    lm.combine([path], consumer="diffusers", out=tmp_path / "n.safetensors")
    assert all(key.startswith(f"unet.{name}.") for key in read(tmp_path / "n.safetensors"))
