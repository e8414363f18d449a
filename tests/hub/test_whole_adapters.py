"""What an adapter of several files says is the same on the Hub: shards, and the labels of its model."""

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import SourceError
from tests.formats.test_shards import sharded
from tests.helpers.files import Cli, folder, tensors
from tests.hub.loopback import files_of

SCORE = "base_model.model.score.weight"


@pytest.mark.parametrize("peeking", [False, True], ids=["downloaded", "looked at"])
@pytest.mark.parametrize("index", [False, True], ids=["by their names", "by an index"])
def test_shards_on_the_hub_are_one_adapter(hub, tmp_path, index, peeking):
    here = sharded(tmp_path / "a", tensors(), index=index)
    hub.add("org/x", files_of(here))
    there = lm.load("org/x", peeking=peeking)
    assert lm.diff(there, here).largest == 0
    assert len(there) == len(lm.load(here)) > 0


@pytest.mark.parametrize("index", [False, True], ids=["by their names", "by an index"])
def test_a_shard_that_the_hub_lacks_is_named(hub, tmp_path, index):
    files = files_of(sharded(tmp_path / "a", tensors(), index=index))
    hub.add("org/x", {name: data for name, data in files.items() if "00002-of" not in name})
    with pytest.raises(SourceError, match="adapter_model-00002-of-00002"):
        lm.load("org/x")


def test_a_merge_of_shards_on_the_hub_is_replayed(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    hub.add("org/x", files_of(sharded(tmp_path / "a", tensors())))
    cli = Cli(capsys)
    assert cli("combine", "org/x", "-o", "m").code == 0, cli.err
    assert cli("replay", "m", "-o", "n").code == 0, cli.err
    names = ("m", "n")
    assert len({(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in names}) == 1


def head(path, seed, labels):
    score = np.full((2, 5), seed, "f4")
    made = folder(path, tensors(seed) | {SCORE: score}, modules_to_save=["score"])
    (made / "config.json").write_text(json.dumps({"id2label": dict(enumerate(labels))}))
    return made


def test_labels_on_the_hub_are_those_of_the_config_beside_the_adapter(hub, tmp_path):
    for seed, (name, labels) in enumerate(
        {"a": ["no", "yes"], "b": ["yes", "no"], "c": ["no", "yes"]}.items()
    ):
        hub.add(f"org/{name}", files_of(head(tmp_path / name, seed, labels)))
    assert lm.load("org/a").labels == {"0": "no", "1": "yes"}
    other = lm.combine(["org/a", "org/b"], extras="average")
    assert any("their labels differ" in note for note in other.report.notes)
    same = lm.combine(["org/a", "org/c"], extras="average")
    np.testing.assert_array_equal(same.adapter.extras[SCORE].read(), np.full((2, 5), 1, "f4"))
    assert not any("labels" in note for note in same.report.notes)
