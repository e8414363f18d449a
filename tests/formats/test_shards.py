"""Adapters in shards are one adapter; a shard alone is none."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import loramerge as lm
from tests.helpers.files import Cli, content, folder, read, tensors

WEIGHTS = "adapter_model.safetensors"


def sharded(path, values, count=2, index=True, **config):
    """As `accelerate` splits a state dict."""
    made = folder(path, values, **config)
    (made / WEIGHTS).unlink()
    names = [f"adapter_model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    table = {key: names[i % count] for i, key in enumerate(sorted(values))}
    for name in names:
        save_file({key: values[key] for key, there in table.items() if there == name}, made / name)
    if index:
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": table})
        (made / f"{WEIGHTS}.index.json").write_text(text)
    return made


# A kind from the wild: E, sharded adapters.
@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("count", [2, 3])
def test_shards_are_read_as_the_one_file_would_be(count, index, tmp_path):
    values = tensors()
    parts, whole = sharded(tmp_path / "a", values, count, index), folder(tmp_path / "b", values)
    found, wanted = lm.load(parts), lm.load(whole)
    assert found.slots.keys() == wanted.slots.keys()
    for target, update in wanted.items():
        np.testing.assert_array_equal(found[target].dense(), update.dense())
    assert len(found.provenance.sha256()) == count + 1
    assert lm.diff(parts, whole).worst(1)[0].error == 0
    assert lm.inspect(parts).to_dict()["modules"] == lm.inspect(whole).to_dict()["modules"]


def test_a_merge_of_shards_is_that_of_the_files_and_can_be_replayed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sharded(tmp_path / "a", tensors()), folder(tmp_path / "b", tensors()), folder(tmp_path / "c", tensors(1))
    cli = Cli(capsys)
    for name, first in (("m", "a"), ("n", "b")):
        assert cli("combine", first, "c", "-o", name).code == 0, cli.err
    assert (tmp_path / "m" / WEIGHTS).read_bytes() == (tmp_path / "n" / WEIGHTS).read_bytes()
    assert cli("replay", "m", "-o", "o").code == 0, cli.err
    (tmp_path / "a" / "adapter_model-00002-of-00002.safetensors").write_bytes(
        (tmp_path / "a" / "adapter_model-00001-of-00002.safetensors").read_bytes()
    )
    assert cli("replay", "m", "-o", "p").code != 0


def test_a_conversion_of_shards_holds_all_of_them(tmp_path):
    values = tensors()
    lm.convert(sharded(tmp_path / "a", values), tmp_path / "c", "peft")
    assert sorted(content(tmp_path / "c")) == ["adapter_config.json", WEIGHTS]
    assert read(tmp_path / "c" / WEIGHTS).keys() == values.keys()
    assert lm.check(tmp_path / "a", "peft") != [], "PEFT itself reads one file"


WRONG = {
    "a shard is missing": (
        lambda p: (p / "adapter_model-00002-of-00002.safetensors").unlink(), "00002-of-00002",
    ),
    "an index of other tensors": (
        lambda p: (p / f"{WEIGHTS}.index.json").write_text(
            '{"weight_map": {"x": "adapter_model-00001-of-00002.safetensors",'
            ' "y": "adapter_model-00002-of-00002.safetensors"}}'
        ),
        "holds x",
    ),
    "an index of half of them": (
        lambda p: (p / f"{WEIGHTS}.index.json").write_text(
            '{"weight_map": {"x": "adapter_model-00001-of-00002.safetensors"}}'
        ),
        "names 1 of 2 shards",
    ),
    "an index that leads elsewhere": (
        lambda p: (p / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"x": "../b.safetensors"}}'),
        "no shard of this folder",
    ),
    "an index without a table": (
        lambda p: (p / f"{WEIGHTS}.index.json").write_text('{"weight_map": [1]}'), "no weight_map",
    ),
    "a tensor twice": (
        lambda p: (p / "adapter_model-00002-of-00002.safetensors").write_bytes(
            (p / "adapter_model-00001-of-00002.safetensors").read_bytes()
        ),
        "in two shards",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_shards_that_do_not_belong_together_are_a_sentence(name, tmp_path, capsys):
    change, words = WRONG[name]
    source = sharded(tmp_path / "a", tensors())
    change(source)
    Cli(capsys)("combine", source, "-o", tmp_path / "m").refused(1, words)
    Cli(capsys)("check", source, "--for", "peft").refused(1, words)


def test_a_shard_alone_is_no_adapter(tmp_path):
    source = sharded(tmp_path / "a", tensors())
    with pytest.raises(lm.SourceError, match="one shard of 2, a part of the adapter: name its folder"):
        lm.load(source / "adapter_model-00001-of-00002.safetensors")


def test_millions_of_shards_are_not_looked_for(tmp_path):
    source = sharded(tmp_path / "a", tensors(), index=False)
    name = "adapter_model-0000{}-of-{}.safetensors"
    for i in (1, 2):
        (source / name.format(i, "00002")).rename(source / name.format(i, "99999"))
    with pytest.raises(lm.SourceError, match="1000 is the limit"):
        lm.load(source)
