"""OUT is never a source, holds none, and lies in the folder of none: through links too, and overwriting."""

import os

import pytest

import loramerge as lm
from loramerge.errors import OutputError
from tests.helpers.files import bare, content, folder, tensors


@pytest.fixture
def runs(tmp_path):
    """Adapters in folders and in files, and links to them."""
    for seed, name in enumerate(("a", "b")):
        folder(tmp_path / name, tensors(seed))
    (tmp_path / "runs").mkdir()
    for seed, name in enumerate(("c", "d")):
        folder(tmp_path / "runs" / name, tensors(seed))
    for name in ("e", "f"):
        lm.combine([tmp_path / "a"], out=tmp_path / f"{name}.safetensors", threads=1)
    (tmp_path / "to_a").symlink_to("a")
    (tmp_path / "to_e.safetensors").symlink_to("e.safetensors")
    os.link(tmp_path / "e.safetensors", tmp_path / "hard.safetensors")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "adapter_model.safetensors").symlink_to(tmp_path / "e.safetensors")
    (tmp_path / "hard").mkdir()
    os.link(tmp_path / "a" / "adapter_model.safetensors", tmp_path / "hard" / "adapter_model.safetensors")
    return tmp_path


REFUSED = {  # sources, OUT -> words
    "a folder": (["a", "b"], "a", "a is a, which"),
    "by a link": (["a", "b"], "to_a", "to_a is a"),
    "of a link": (["to_a", "b"], "a", "a is to_a"),
    "by another way": (["a", "b"], "runs/../a", "is a"),
    "in its folder": (["a", "b"], "a/merged", "a/merged lies in the folder of a"),
    "a file in its folder": (["a", "b"], "a/merged.safetensors", "lies in the folder of a"),
    "in its folder by a link": (["a", "b"], "to_a/merged", "lies in the folder of a"),
    "its weights": (["a/adapter_model.safetensors"], "a/adapter_model.safetensors", "is a"),
    "beside its weights": (["a/adapter_model.safetensors"], "a/x.safetensors", "lies in the folder of"),
    "a file": (["e.safetensors", "f.safetensors"], "e.safetensors", "e.safetensors is e.safetensors"),
    "a file by a link": (["e.safetensors", "f.safetensors"], "to_e.safetensors", "is e.safetensors"),
    "a file by a hard link": (["e.safetensors", "f.safetensors"], "hard.safetensors", "is e.safetensors"),
    "of a linked file": (["to_e.safetensors", "f.safetensors"], "e.safetensors", "is to_e.safetensors"),
    "holding": (["runs/c", "runs/d"], "runs", "runs holds c"),
    "holding all": (["runs"], "runs", "runs holds c"),
    "a member": (["runs"], "runs/c", "runs/c is c"),
    "holding a hard link": (["a", "b"], "hard", "hard holds a"),
    "holding a link": (["links/adapter_model.safetensors", "a"], "links", "links is adapter_model"),
}  # fmt: skip


@pytest.mark.parametrize(("sources", "out", "words"), REFUSED.values(), ids=REFUSED)
def test_an_output_that_touches_a_source_is_refused(runs, monkeypatch, sources, out, words):
    monkeypatch.chdir(runs)
    before = content(runs)
    alpha = {"alpha": "rank"} if "model" in sources[0] else {}
    with pytest.raises(OutputError, match=words):
        lm.combine(sources, out=out, overwrite=True, threads=1, **alpha)
    assert content(runs) == before


def test_a_folder_that_stands_for_many_is_no_source(runs, cli, monkeypatch):
    monkeypatch.chdir(runs)
    assert cli("combine", "runs", "-o", "runs/merged").code == 0
    assert cli("combine", "runs/c", "runs/d", "-o", "runs/merged", "--overwrite").code == 0
    assert cli("combine", "e.safetensors", "f.safetensors", "-o", "g.safetensors").code == 0


@pytest.mark.parametrize(
    "command",
    [
        ("convert", "a", "a/x", "--to", "peft"),
        ("convert", "e.safetensors", "e.safetensors", "--to", "peft", "--overwrite"),
        ("resize", "a", "--rank", 1, "-o", "a", "--overwrite"),
        ("combine", "a", "-o", "a", "--overwrite", "--dry-run"),
        ("combine", "e.safetensors", "-o", "e.safetensors", "--overwrite", "--dense-delta"),
        ("combine", "a", "b", "-o", "x", "--spread", "e.safetensors", "--overwrite", "--method", "average"),
    ],
)
def test_every_command_keeps_its_sources(runs, cli, monkeypatch, command):
    monkeypatch.chdir(runs)
    if "--spread" in command:
        command = ("combine", "e.safetensors", *command[2:])
    before = content(runs)
    option = "--spread" if "--spread" in command else "-o"
    cli(*command).refused(1, f"which is merged. Choose another {option}.")
    assert content(runs) == before


def test_a_table_that_is_read_is_no_place_to_write(runs, monkeypatch):
    monkeypatch.chdir(runs)
    bare(runs / "vectors.safetensors", {"query": [1.0, 1.0], "a": [1.0, 0.0], "b": [0.0, 1.0]})
    before = content(runs)
    with pytest.raises(OutputError, match=r"is vectors\.safetensors"):
        lm.combine(["a", "b"], "sg", describe="query", out="vectors.safetensors", overwrite=True,
            embedding="vectors.safetensors", descriptions={"a": "a", "b": "b"})  # fmt: skip
    assert content(runs) == before


@pytest.mark.parametrize("ask", [["m", "b"], ["m/adapter_model.safetensors"], ["."]])
def test_what_a_crash_left_aside_is_put_back_when_it_is_a_source(tmp_path, monkeypatch, ask):
    monkeypatch.chdir(tmp_path)
    for name in "mb":
        folder(tmp_path / name)
    before = content(tmp_path / "m")
    os.rename("m", ".m.loramerge-old")
    (tmp_path / ".m.loramerge-new").mkdir()
    merge = lm.combine(ask, alpha="rank" if "/" in ask[0] else None, threads=1)
    assert len(merge.plan.sources.whole) == (1 if "/" in ask[0] else 2)
    assert content(tmp_path / "m") == before
    assert sorted(os.listdir()) == ["b", "m"]


@pytest.mark.parametrize("out", ["other", "other/merged", "other/merged.safetensors"])
def test_another_name_of_the_folder_of_a_source_is_no_way_around(runs, monkeypatch, out):
    """As by a mount, or on a disk where case does not count: nothing but the inodes is the same."""
    monkeypatch.chdir(runs)
    (runs / "other").symlink_to("a")
    monkeypatch.setattr(os.path, "realpath", lambda path, **_: os.path.abspath(path))
    before = content(runs)
    with pytest.raises(OutputError, match=f"{out} (is|holds|lies in).* a, which is merged"):
        lm.combine(["a", "b"], out=out, overwrite=True, threads=1)
    assert content(runs) == before


def test_a_bundle_is_the_folder_of_its_adapters(runs, monkeypatch):
    monkeypatch.chdir(runs)
    lm.route(["a", "b"], gate="static", out="bundle", threads=1)
    before = content(runs)
    for sources in (["bundle"], ["bundle/task_0", "a"]):
        with pytest.raises(OutputError, match=r"bundle/merged lies in the folder of task_0"):
            lm.combine(sources, out="bundle/merged", threads=1)
    assert content(runs) == before
