"""What a merge says of the trainings behind it: by hand."""

import json

import loramerge as lm
from tests.helpers.dialects import pairs, saved

Q = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"


def source(tmp_path, name, **said):
    return saved(tmp_path / f"{name}.safetensors", pairs({Q: (4, 4)}, alpha=1.0), said)


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
    assert not {"modelspec.hash_sha256", "sshs_model_hash", "note"} & told.keys()


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
