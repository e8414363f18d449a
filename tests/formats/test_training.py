"""What a merge says of the trainings behind it: by hand."""

import hashlib
import json

import pytest
from safetensors.numpy import load_file, save

import loramerge as lm
from tests.helpers.dialects import pairs, saved

Q = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"


def source(tmp_path, name, **said):
    return saved(tmp_path / f"{name}.safetensors", pairs({Q: (4, 4)}, alpha=1.0), said)


# A kind from the wild: E, training metadata.
def test_of_one_source_everything_is_kept_that_is_still_true(tmp_path):
    said = {
        "ss_tag_frequency": '{"a": {"cat": 2}}',
        "ss_epoch": "9",
        "ss_network_dim": "2",
        "modelspec.trigger_phrase": "ohwx",
        "modelspec.hash_sha256": "0x00",
        "sshs_model_hash": "0" * 64,
        "note": "mine",
    }
    merge = lm.combine([source(tmp_path, "a", **said)], "svd", rank=1, out=tmp_path / "m.safetensors")
    told = merge.adapter.metadata
    kept = ("ss_tag_frequency", "ss_epoch", "modelspec.trigger_phrase")
    assert {key: told[key] for key in kept} == {key: said[key] for key in kept}
    assert told["ss_network_dim"] == "1"
    assert not {"modelspec.hash_sha256", "note"} & told.keys()
    assert told["sshs_model_hash"] != said["sshs_model_hash"], "it is that of the merge"


def test_of_several_titles_triggers_and_tags_are_put_together(tmp_path):
    one = {
        "modelspec.trigger_phrase": "ohwx",
        "modelspec.title": "Ink",
        "ss_tag_frequency": '{"x": {"cat": 2}}',
    }
    two = {
        "modelspec.trigger_phrase": "sks",
        "modelspec.title": "Oil",
        "ss_tag_frequency": '{"x": {"cat": 1}}',
    }
    paths = [
        source(tmp_path, "a", ss_epoch="3", **one),
        source(tmp_path, "b", **two),
        source(tmp_path, "c", **one),
    ]
    told = lm.combine(paths, "cat", out=tmp_path / "m.safetensors").adapter.metadata
    assert told["modelspec.trigger_phrase"] == "ohwx, sks"
    assert told["modelspec.title"] == "Ink + Oil"
    assert json.loads(told["ss_tag_frequency"]) == {"x": {"cat": 5}}
    assert "ss_epoch" not in told


def test_tags_that_are_no_counts_are_left_out(tmp_path):
    odd = ["[", "[1]", '{"x": 3}', '{"x": {"cat": "often"}}']
    paths = [source(tmp_path, f"{n}", ss_tag_frequency=text) for n, text in enumerate(odd)]
    assert "ss_tag_frequency" not in lm.combine(paths, "cat", out=tmp_path / "m.safetensors").adapter.metadata


@pytest.mark.parametrize("size", [4, 400])
@pytest.mark.parametrize("how", ["combine", "convert", "save"])
def test_hashes_are_made_anew_as_sd_scripts_makes_them(size, how, tmp_path):
    """safetensors' own writer, and SHA-256 of the same ranges, are the oracle."""
    said = {"sshs_model_hash": "a" * 64, "sshs_legacy_hash": "b" * 8, "ss_output_name": "mine"}
    path, out = tmp_path / "a.safetensors", tmp_path / "m.safetensors"
    saved(path, pairs({Q: (size, size)}, rank=size, alpha=1.0), said)
    if how == "combine":
        lm.combine([path], "svd", weights=[0.5], out=out)
    elif how == "convert":
        lm.convert(path, tmp_path / "other.safetensors", "kohya", dtype="float64")
        out = tmp_path / "other.safetensors"
    else:
        lm.save(lm.load(path), out)
    told = lm.load(out).metadata
    alone = {key: value for key, value in told.items() if key.startswith("ss_")}
    raw = save(load_file(out), alone)
    start = 8 + int.from_bytes(raw[:8], "little")
    assert told["sshs_model_hash"] == hashlib.sha256(raw[start:]).hexdigest()
    assert told["sshs_legacy_hash"] == hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8]


def test_a_file_without_hashes_gets_none(tmp_path):
    told = lm.combine([source(tmp_path, "a", ss_epoch="1")], out=tmp_path / "m.safetensors").adapter.metadata
    assert not {"sshs_model_hash", "sshs_legacy_hash"} & told.keys()
