"""Factors that are exchanged for a converter that turns layers: read back, refused by PEFT, told by check."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import loramerge as lm
from loramerge.errors import SourceError
from loramerge.formats.peft.exchange import KIND
from tests.consumers.turning import SIZES, SQUARE, turning
from tests.helpers.files import Cli


def dense(source, **options):
    adapter = lm.load(source, **options)
    return {target.path: adapter[target].dense() for target in adapter}


def same(found, wanted, atol=1e-6):
    assert found.keys() == wanted.keys()
    for path, delta in wanted.items():
        np.testing.assert_allclose(found[path], delta, atol=atol)


@pytest.fixture
def places(tmp_path):
    return [turning(tmp_path / name, seed) for seed, name in enumerate("ab")]


@pytest.fixture
def merged(places, tmp_path):
    lm.combine(places, "cat", weights=[0.7, -0.3], consumer="llama.cpp", out=tmp_path / "m")
    return tmp_path / "m"


def wanted(places):
    first, second = map(dense, places)
    return {path: 0.7 * first[path] - 0.3 * second[path] for path in first}


def test_the_converter_makes_of_it_what_is_meant(places, merged):
    config, stored = json.loads((merged / "adapter_config.json").read_text()), {}
    tensors = load_file(merged / "adapter_model.safetensors")
    for path in SIZES:
        down, up = (tensors[f"base_model.model.{path}.lora_{side}.weight"] for side in "AB")
        down, up = up.T, down.T  # `LoraTorchTensor.transpose` of a Conv1D
        stored[path] = config["lora_alpha"] / len(down) * up @ down
    same(stored, wanted(places))


def test_it_is_read_as_it_was(places, merged, tmp_path):
    same(dense(merged), wanted(places))
    assert any("written for llama.cpp" in said for said in lm.load(merged).oddities)
    alone = shutil.copy(merged / "adapter_model.safetensors", tmp_path / "alone.safetensors")
    same(dense(merged / "adapter_model.safetensors"), wanted(places))  # the config is beside
    same(dense(alone, alpha="rank"), wanted(places))  # the header says it


def test_a_file_that_lost_its_header_is_read_by_its_config(places, merged):
    weights = merged / "adapter_model.safetensors"
    save_file(load_file(weights), weights)
    same(dense(merged), wanted(places))


def test_it_merges_with_others_and_becomes_an_adapter_of_peft_again(places, merged, tmp_path):
    lm.combine([merged, places[0]], "cat", weights=[1.0, 1.0], out=tmp_path / "both")
    first = dense(places[0])
    same(dense(tmp_path / "both"), {path: delta + first[path] for path, delta in wanted(places).items()})
    assert not lm.convert(merged, tmp_path / "c", "peft").copied
    same(dense(tmp_path / "c"), wanted(places))
    for made in ("both", "c"):
        assert json.loads((tmp_path / made / "adapter_config.json").read_text())["peft_type"] == "LORA"
        assert lm.check(tmp_path / made, "peft") == []


def test_it_is_replayed_byte_by_byte(merged, tmp_path):
    lm.replay(merged, out=tmp_path / "again")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (merged / name).read_bytes()


@pytest.mark.parametrize("consumer", ["peft", "transformers", "vllm", "sglang"])
def test_no_other_program_is_said_to_load_it_and_what_is_offered_helps(consumer, merged, capsys):
    first, *_ = lm.check(merged, consumer)
    assert first.effect == "rejects"
    assert "written for llama.cpp" in first.sentence
    for command in {each.command for each in lm.check(merged, consumer)} - {""}:
        assert Cli(capsys)(*command.split()[1:]).code == 0, command


def test_peft_refuses_it_and_says_why(merged):
    peft = pytest.importorskip("peft")
    with pytest.raises(KeyError, match=KIND):
        peft.PeftConfig.from_pretrained(str(merged))


def test_only_layers_that_are_turned_are_exchanged(tmp_path):
    place = turning(tmp_path / "a", 0)
    weights = place / "adapter_model.safetensors"
    plain = "base_model.model.transformer.h.0.mlp.other.lora_"
    more = {f"{plain}A.weight": np.eye(2, 6, dtype="f4"), f"{plain}B.weight": np.ones((6, 2), "f4")}
    save_file(load_file(weights) | more, weights)
    lm.combine([place], "linear", consumer="llama.cpp", out=tmp_path / "m")
    same(dense(tmp_path / "m"), dense(place))
    assert json.loads((tmp_path / "m" / "adapter_config.json").read_text())["turned"] == [
        "c_attn",
        "c_fc",
        "c_proj",
    ]


def test_a_model_without_such_layers_is_written_as_ever(tmp_path):
    llama = {"base_model_name_or_path": "bigcode/starcoder", "fan_in_fan_out": False}
    lm.combine([turning(tmp_path / "a", 0, **llama)], "linear", consumer="llama.cpp", out=tmp_path / "m")
    assert json.loads((tmp_path / "m" / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_a_mark_that_does_not_say_which_layers_is_refused(merged):
    config = merged / "adapter_config.json"
    said = json.loads(config.read_text())
    for names in ("c_proj", [], None):
        config.write_text(json.dumps(said | {"turned": names}))
        with pytest.raises(SourceError, match="does not list under turned which"):
            lm.load(merged)


def test_a_pair_that_lost_a_factor_is_refused_by_its_name(merged):
    weights = merged / "adapter_model.safetensors"
    tensors = load_file(weights)
    del tensors[f"base_model.model.{SQUARE}.lora_A.weight"]
    save_file(tensors, weights)
    with pytest.raises(SourceError, match=r"c_proj\.lora_A"):
        lm.load(merged)
