"""Many adapters named at once: a folder, a glob, a list; in one order on every disk."""

import gc
import os
import random

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import LoramergeError, SourceError, UsageError
from loramerge.sources.expand import expand, left_aside
from tests.helpers.adapters import random_adapters
from tests.helpers.files import bare, folder, tensors


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """many/: three folders and a file that are adapters, and three things that are not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "many").mkdir()
    names = ["b", "a", "ckpt-10", "ckpt-9"]
    random.shuffle(names)
    for name in names:
        folder(tmp_path / "many" / name, tensors(len(name)))
    bare(tmp_path / "many/c.safetensors", tensors(3), {"lora_adapter_metadata": '{"r": 2, "lora_alpha": 2}'})
    (tmp_path / "many/logs").mkdir()
    (tmp_path / "many/notes.txt").touch()
    (tmp_path / "many/.cache").mkdir()
    folder(tmp_path / "single", tensors(7))


MEMBERS = ["many/a", "many/b", "many/c.safetensors", "many/ckpt-9", "many/ckpt-10"]
EXPANSIONS = {
    "an adapter": ("single", ["single"]),
    "a folder of adapters": ("many", MEMBERS),
    "the same, with a slash": ("many/", MEMBERS),
    "a glob": ("many/ckpt-*", ["many/ckpt-9", "many/ckpt-10"]),
    "a glob over all": ("many/*", MEMBERS),
    "a glob of files": ("[m-s]*/*e*.safetensors", ["single/adapter_model.safetensors"]),
    "a class": ("many/[ab]", ["many/a", "many/b"]),
    "what is not there": ("nothing", ["nothing"]),
    "a folder with one file": ("one", ["one"]),
    "a folder with two files": ("two", ["two/x.safetensors", "two/y.safetensors"]),
    "a folder with one folder": ("nest", ["nest/default"]),
    "a name that looks like a glob": ("g[1]", ["g[1]"]),
    "a file that begins with @": ("@at", ["@at"]),
}


@pytest.mark.parametrize(("source", "members"), EXPANSIONS.values(), ids=EXPANSIONS)
def test_a_source_stands_for_these(tmp_path, source, members):
    for name in ("one", "two", "nest", "g[1]"):
        (tmp_path / name).mkdir()
    for name in ("one/x", "two/y", "two/x"):
        bare(tmp_path / f"{name}.safetensors")
    folder(tmp_path / "nest/default")
    folder(tmp_path / "@at")
    assert expand(source) == [(member, None) for member in members]


def test_what_is_left_aside_is_told_but_for_hidden_files():
    assert left_aside("many") == ["logs", "notes.txt"]
    assert left_aside("single") == []


def listed(tmp_path, text):
    (tmp_path / "list.txt").write_text(text)
    return expand("@list.txt")


def test_a_list_has_a_source_on_each_line_and_maybe_a_weight(tmp_path):
    text = (
        "# chosen\n\nmany/b 0.5\nmany/a\t-2\n  single  \r\nmany/ckpt-* 3e-1\nwith space/x\nwith space/y 1\n"
    )
    assert listed(tmp_path, text) == [
        ("many/b", 0.5),
        ("many/a", -2.0),
        ("single", None),
        ("many/ckpt-9", 0.3),
        ("many/ckpt-10", 0.3),
        ("with space/x", None),
        ("with space/y", 1.0),
    ]
    (tmp_path / "model 2").mkdir()
    assert listed(tmp_path, "model 2\nmodel nan\n") == [("model 2", None), ("model nan", None)]


# A kind from the wild: E, checkpoints of a glob.
def test_weights_meet_checkpoints_in_the_order_of_their_steps(tmp_path):
    (tmp_path / "run").mkdir()
    for step in (1000, 200, 600):
        folder(tmp_path / f"run/checkpoint-{step}", tensors(step))
    found = lm.combine(["run"], weights=[0.1, 0.3, 0.6])
    steps = [f"run/checkpoint-{step}" for step in (200, 600, 1000)]
    wanted = sum(
        w * next(iter(lm.load(s).values())).dense() for w, s in zip((0.1, 0.3, 0.6), steps, strict=True)
    )
    np.testing.assert_allclose(next(iter(found.adapter.values())).dense(), wanted, atol=1e-5)
    assert not any("as a shell sorts" in note for note in found.report.notes)
    shell = lm.combine(sorted(steps), weights=[0.1, 0.3, 0.6]).report.notes
    assert any("checkpoint-1000 stands before checkpoint-200, as a shell sorts" in note for note in shell)
    assert not any("sorts" in note for note in lm.combine(sorted(steps)).report.notes)


REFUSED = {
    "a list that is not there": ("@no.txt", "The list no.txt does not exist"),
    "an empty list": ("@empty", "The list empty names no source"),
    "a list of comments": ("@comments", "names no source"),
    "a list of lists": ("@nested", "nested lists another list, @empty"),
    "a pickle": ("@binary", "is not a list of sources"),
    "a huge file": ("@huge", "is not a list of sources"),
    "a folder": ("@many", "The list many is not a file"),
    "a glob that finds nothing": ("none-*", r"none-\* finds no adapter"),
    "a glob that finds no adapter": ("many/*.txt", "finds no adapter"),
}


@pytest.mark.parametrize(("source", "words"), REFUSED.values(), ids=REFUSED)
def test_a_collection_that_is_none_is_refused(tmp_path, source, words):
    (tmp_path / "empty").touch()
    (tmp_path / "comments").write_text("# one\n#two\n")
    (tmp_path / "nested").write_text("@empty\n")
    (tmp_path / "binary").write_bytes(b"PK\0\1")
    (tmp_path / "huge").write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(LoramergeError, match=words):
        lm.combine([source])


def test_a_collection_merges_as_its_members_do(tmp_path):
    lm.combine(["many"], out="m")
    lm.combine(MEMBERS, out="n")
    assert (tmp_path / "m/loramerge.json").read_text() == (tmp_path / "n/loramerge.json").read_text()
    lm.replay("m", sources={}, out="again", folders=["many"])
    weights = "adapter_model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (tmp_path / "m" / weights).read_bytes()


def test_weights_are_counted_after_the_expansion_and_come_before_those_of_a_list(tmp_path):
    (tmp_path / "list").write_text("many/a 0.25\nsingle\n")
    memory = random_adapters(0, [2], {"layers.0.q": (6, 5)})[0]
    assert lm.combine(["@list"]).report.weights == (0.25, 1.0)
    assert lm.combine([memory, "@list"]).report.weights == (1.0, 0.25, 1.0)
    assert lm.combine(["@list"], weights=[3, 4]).report.weights == (3.0, 4.0)
    with pytest.raises(UsageError, match="1 weights for 5 adapters"):
        lm.combine(["many"], weights=[1])


def test_a_hundred_adapters_leave_no_descriptors(tmp_path):
    (tmp_path / "lot").mkdir()
    for number in range(100):
        bare(tmp_path / f"lot/{number:03}.safetensors", tensors(number, 1))
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    merge = lm.combine(["lot"], "svd", rank=2, alpha=1)
    assert len(merge.report.sources) == 100
    del merge
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_adapters_two_levels_down_are_offered_and_what_is_offered_works(tmp_path):
    for run in ("a", "b"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        folder(tmp_path / f"runs/{run}/final", tensors(ord(run)))
    with pytest.raises(SourceError, match=r"runs/a/final is one: name it, or all of them by") as refused:
        lm.combine([tmp_path / "runs"])
    offered = str(refused.value).rpartition("by '")[2].rstrip("'.")
    assert len(lm.combine([offered]).report.sources) == 2


def test_all_broken_sources_are_named_at_once(tmp_path):
    (tmp_path / "lot").mkdir()
    for number in range(14):
        bare(tmp_path / f"lot/{number:02}.safetensors", tensors(number, 1))
        if number % 2:
            (tmp_path / f"lot/{number:02}.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match=r"^7 of the 14 sources cannot be merged") as refused:
        lm.combine([tmp_path / "lot"], alpha=1)
    for number in range(1, 14, 2):
        assert f"{number:02}.safetensors" in str(refused.value)
    assert "00.safetensors" not in str(refused.value)
