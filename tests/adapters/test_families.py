"""What files say of the model they are for: families are kept apart, and chains are known."""

import json

import numpy as np
import pytest

import loramerge as lm
from tests.helpers.files import bare, folder, tensors

PROJ = "mid_block_attentions_0_proj_in"


def image(path, prefix="lora_unet_", seed=0, **metadata):
    rng = np.random.default_rng(seed)
    sizes = {"lora_down.weight": (2, 8), "lora_up.weight": (8, 2)}
    values = {f"{prefix}{PROJ}.{end}": rng.standard_normal(size).astype("f4") for end, size in sizes.items()}
    return bare(path, values, {key.replace("__", "."): value for key, value in metadata.items()} or None)


APART = {
    "two versions": (
        {"ss_base_model_version": "sd_v1"}, {"ss_base_model_version": "sdxl_base_v1-0"}, ("a", "b"),
    ),
    "two architectures": (
        {"modelspec__architecture": "flux-1-dev/lora"}, {"modelspec__architecture": "wan-2.1/lora"},
        ("a", "b"),
    ),
    "two noises by their names": ({}, {}, ("wan_high_noise", "wan-LowNoise")),
    "two noises by their titles": (
        {"modelspec__title": "Wan high noise"}, {"modelspec__title": "Wan low noise"}, ("a", "b"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_adapters_of_two_families_are_not_merged_unasked(name, tmp_path):
    first, second, names = APART[name]
    files = [
        image(tmp_path / f"{n}.safetensors", **said) for n, said in zip(names, (first, second), strict=True)
    ]
    with pytest.raises(lm.IncompatibleError, match="allow_base_mismatch"):
        lm.combine(files)
    assert len(lm.combine(files, allow_base_mismatch=True).adapter) == 1


def test_one_family_of_two_forms_is_one(tmp_path):
    said = [{"modelspec__architecture": f"flux-1-dev/{form}"} for form in ("lora", "lokr")]
    lm.combine([image(tmp_path / f"{i}_high_noise.safetensors", **each) for i, each in enumerate(said)])


def test_the_sentence_about_two_bases_knows_of_chains(tmp_path):
    first = folder(tmp_path / "sft", tensors(1), base_model_name_or_path="org/base")
    second = folder(tmp_path / "dpo", tensors(2), base_model_name_or_path="me/base-sft")
    with pytest.raises(lm.IncompatibleError, match="or one was trained on top of the other"):
        lm.combine([first, second])


TRAINED = {
    "ss_output_name": "mine",
    "ss_tag_frequency": '{"cats": {"a cat": 9}}',
    "modelspec__title": "Cats",
    "modelspec__trigger_phrase": "zxc cat",
    "sshs_model_hash": "0" * 64,
    "ss_network_dim": "2",
}


@pytest.mark.parametrize("act", [
    lambda source, out: lm.combine([source], out=out),
    lambda source, out: lm.resize(source, rank=1, out=out),
])  # fmt: skip
def test_what_one_training_says_of_itself_is_kept(act, tmp_path):
    act(image(tmp_path / "a.safetensors", **TRAINED), tmp_path / "m.safetensors")
    found = lm.load(tmp_path / "m.safetensors").metadata
    for key in ("ss_output_name", "ss_tag_frequency", "modelspec.title", "modelspec.trigger_phrase"):
        assert found[key] == TRAINED[key.replace(".", "__")]
    assert found["sshs_model_hash"] not in ("", TRAINED["sshs_model_hash"])  # made anew
    assert found["ss_network_dim"] == str(lm.load(tmp_path / "m.safetensors").rank)
    both = image(tmp_path / "b.safetensors", seed=1, **TRAINED)
    lm.combine([tmp_path / "a.safetensors", both], out=tmp_path / "n.safetensors")
    of_both = lm.load(tmp_path / "n.safetensors").metadata
    assert json.loads(of_both["ss_tag_frequency"]) == {"cats": {"a cat": 18}}
    assert of_both["modelspec.title"] == "Cats"


def test_what_other_trainers_say_is_kept_too(tmp_path):
    said = {"training_info": '{"step": 500}', "name": "mine", "version": "1.0", "ot_config": "{}"}
    lm.resize(image(tmp_path / "a.safetensors", **said), rank=1, out=tmp_path / "m.safetensors")
    assert said.items() <= lm.load(tmp_path / "m.safetensors").metadata.items()


@pytest.mark.parametrize("prefix", ["lora_unet_unet_", "lora_unet_lora_unet_"])
def test_a_prefix_that_is_written_twice_is_written_once(prefix, tmp_path):
    plain, twice = image(tmp_path / "a.safetensors"), image(tmp_path / "b.safetensors", prefix)
    found = lm.load(twice)
    assert found.slots.keys() == lm.load(plain).slots.keys()
    assert any(prefix in oddity for oddity in found.oddities)
    assert lm.diff(plain, twice).largest == 0
