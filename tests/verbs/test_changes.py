"""A file that changes at any read of any verb: the answer is of one of both, or there is none.

A trainer may save at any moment. So what a verb gives is what it gives before, or what it gives afterwards;
or a sentence, exit 1, and nothing is left.
"""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapters import original
from loramerge.formats import writer
from tests.helpers.files import content, folder, tensors
from tests.helpers.models import random_model, save_model

MODULE = "model.layers.0.self_attn.q_proj"
SHAPES = {MODULE: (16, 16)}
ADAPTER, CONFIG, WEIGHTS = "adapter_model.safetensors", "adapter_config.json", "model.safetensors"


def written(*paths):
    return lambda _: {path: content(Path(path)) for path in paths}


def report(**out):
    pytest.importorskip("altair")
    page = lm.report(["a", "b"], methods=["svd"], **out)
    return [(s.name, s.notes, s.table and s.table.cells()) for s in page.sections]


VERBS = {  # verb -> (what is done, what comes of it, the files that it reads)
    "inspect": (lambda: lm.inspect("a"), lambda made: made.to_dict(), [f"a/{ADAPTER}", f"a/{CONFIG}"]),
    "diff": (lambda: lm.diff("a", "b"), str, [f"a/{ADAPTER}", f"b/{ADAPTER}", f"a/{CONFIG}"]),
    "check": (lambda: lm.check("a", "vllm"), str, [f"a/{ADAPTER}", f"a/{CONFIG}"]),
    "plan": (lambda: lm.plan(["a", "b"], "svd"), str, [f"a/{ADAPTER}", f"a/{CONFIG}"]),
    "state dict": (lambda: lm.to_state_dict(lm.load("a")), str, [f"a/{ADAPTER}", f"a/{CONFIG}"]),
    "report": (report, str, [f"a/{ADAPTER}", f"a/{CONFIG}"]),
    "page": (
        lambda: report(out="page.html"),
        written("page.html"),
        [f"a/{ADAPTER}", f"a/{CONFIG}"],
    ),
    "combine": (
        lambda: lm.combine(["a", "b"], "svd", rank=1, out="out", threads=1),
        written("out"),
        [f"a/{ADAPTER}", f"a/{CONFIG}"],
    ),
    "archives": (
        lambda: lm.combine(["a.npz", "b"], "svd", rank=1, alpha="rank", out="out", threads=1),
        written("out"),
        ["a.npz"],
    ),
    "tuned": (
        lambda: lm.combine([lm.Tuned("tuned", "base", 2), "a"], "svd", rank=1, out="out", threads=1),
        written("out"),
        [f"tuned/{WEIGHTS}", f"base/{WEIGHTS}"],
    ),
    "guarded": (
        lambda: lm.combine(["a"], "linear", project_out="b", out="out", threads=1),
        written("out"),
        [f"b/{ADAPTER}"],
    ),
    "resize": (lambda: lm.resize("a", rank=1, out="out"), written("out"), [f"a/{ADAPTER}", f"a/{CONFIG}"]),
    "convert": (lambda: lm.convert("a", "out", "mlx"), written("out"), [f"a/{ADAPTER}", f"a/{CONFIG}"]),
    "copy": (lambda: lm.convert("a", "out", "peft"), written("out"), [f"a/{ADAPTER}", f"a/{CONFIG}"]),
    "save": (lambda: lm.save(lm.load("a"), "out"), written("out"), [f"a/{ADAPTER}", f"a/{CONFIG}"]),
    "route": (
        lambda: lm.route(["a", "b"], out="out", gate="arrow", threads=1),
        written("out"),
        [f"a/{ADAPTER}", f"a/{CONFIG}"],
    ),
    "deltas": (
        lambda: lm.write_deltas(lm.plan(["a", "b"], "svd"), "out.safetensors"),
        written("out.safetensors"),
        [f"a/{ADAPTER}", f"a/{CONFIG}"],
    ),
    "fuse": (
        lambda: lm.fuse("a", "base", "out", threads=1),
        written("out"),
        [f"a/{ADAPTER}", f"a/{CONFIG}", f"base/{WEIGHTS}", "base/config.json"],
    ),
    "extract": (
        lambda: lm.extract("tuned", "base", "out", rank=2, threads=1),
        written("out"),
        [f"tuned/{WEIGHTS}", f"base/{WEIGHTS}", "tuned/config.json"],
    ),
    "fuse of shards": (
        lambda: lm.fuse("a", "shards", "out", threads=1),
        written("out"),
        [f"shards/{WEIGHTS}.index.json", "shards/model-00002-of-00002.safetensors"],
    ),
    "bundle": (
        lambda: lm.combine(["bundle"], "linear", out="out", row="a", threads=1),
        written("out"),
        ["bundle/loramerge.json", f"bundle/task_0/{ADAPTER}"],
    ),
    "restore": (
        lambda: lm.restore("masked", "a", out="out"),
        written("out"),
        [f"masked/{ADAPTER}", "masked/masks/masks.safetensors"],
    ),
    "replay": (
        lambda: lm.replay("merged", out="out", threads=1),
        written("out"),
        ["merged/loramerge.json", f"a/{ADAPTER}"],
    ),
}
PLACES = [(verb, path) for verb, (_, _, paths) in VERBS.items() for path in paths]
FOLDERS = sorted({(verb, path.partition("/")[0]) for verb, path in PLACES if "/" in path})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What all verbs read, and the same files with other values of the same length."""
    here = tmp_path_factory.mktemp("made")
    for seed, name in enumerate("ab"):
        folder(here / name, tensors(seed, shapes=SHAPES), base_model_name_or_path="base")
    np.savez(here / "a.npz", **tensors(0, shapes=SHAPES))
    weights = random_model()
    save_model(here / "base", weights)
    save_model(here / "shards", weights, shards=2)
    save_model(here / "tuned", {**weights, f"{MODULE}.weight": weights[f"{MODULE}.weight"] + 1})
    lm.combine([here / "a", here / "b"], "svd", rank=1, out=here / "merged")
    lm.combine([here / "a", here / "b"], "mergevla", rank=1, out=here / "masked")
    lm.route([here / "a", here / "b"], gate="task", out=here / "bundle")
    return here


def other(path):
    """Another text of the same length for a file."""
    if path.suffix == ".json":
        text = path.read_text()
        found = text.replace('"lora_alpha": 4', '"lora_alpha": 8').replace('"llama"', '"gemma"')
        found = found.replace("00001-of", "00002-of").replace('"tasks": [', '"tusks": [')
        return found.replace('"weight": 1.0', '"weight": 2.0').encode()
    if path.suffix == ".npz":
        np.savez(made := io.BytesIO(), **{key: 2 * value for key, value in np.load(path).items()})
        return made.getvalue()
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    for at in range(start + 2, len(data), 4):  # an exponent's last bit: half, or twice as much
        data[at] ^= 0x80
    return bytes(data)


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A fresh copy of all of it for each run."""

    def fresh(name):
        shutil.copytree(made, tmp_path / name)
        monkeypatch.chdir(tmp_path / name)

    return fresh


def outcome(verb):
    act, found, _ = VERBS[verb]
    there = {*os.listdir()}
    try:
        return found(act())
    except lm.LoramergeError as error:
        assert {*os.listdir()} == there, "something is left"
        return error


def is_of_one(found, before, after):
    """Whether it is what was there before, or afterwards, or a sentence that it changed."""
    if isinstance(found, lm.SourceError):
        return found.exit_code == 1
    said = [str(each) if isinstance(each, Exception) else each for each in (found, before, after)]
    return said[0] in said[1:]


class Reads:
    """Counts what is read of files, and acts before a read of this number."""

    def __init__(self, monkeypatch):
        self.count, self.at, self.act = 0, -1, lambda: None
        for name in ("_fill", "_read", "_settled"):
            monkeypatch.setattr(original, name, self.counting(getattr(original, name)))

    def counting(self, function):
        def read(*given):
            if self.count == self.at:
                self.act()
            self.count += 1
            return function(*given)

        return read


def saved_over(path, text):
    path.write_bytes(text)


def hidden(path, text):
    """The same, but the time of writing is set back."""
    then = os.stat(path)
    path.write_bytes(text)
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "all"])
@pytest.mark.parametrize("act", [saved_over, hidden], ids=lambda act: act.__name__)
@pytest.mark.parametrize(("verb", "path"), PLACES)
def test_a_file_that_changes(verb, path, act, every, place, monkeypatch):
    place("before")
    reads = Reads(monkeypatch)
    before, count = outcome(verb), reads.count
    assert not isinstance(before, Exception), before
    place("after")
    Path(path).write_bytes(text := other(Path(path)))
    after = outcome(verb)
    middle = len(verb + path) % count
    some = {0, 1, middle, count - 1} if act is saved_over else {middle, count - 1}
    for at in range(count) if every else sorted(some):
        place(f"run{at}")
        reads.count, reads.at, reads.act = 0, at, lambda: act(Path(path), text)
        found = outcome(verb)
        reads.at = -1
        assert is_of_one(found, before, after), f"at read {at} of {count}"


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "all"])
@pytest.mark.parametrize(("verb", "name"), FOLDERS)
def test_a_folder_that_is_exchanged(verb, name, every, place, monkeypatch):
    """Its config is of one state, its weights are of another: each is whole, so no read sees a change."""

    def copied(run):
        place(run)
        shutil.copytree(name, there := Path(f"../{run}-{name}"))
        for path in filter(Path.is_file, there.rglob("*")):
            if path.suffix in (".json", ".safetensors"):
                path.write_bytes(other(path))
        return there

    def exchange(there):
        os.rename(name, f"{there}-before")
        os.rename(there, name)

    copied("before")
    reads = Reads(monkeypatch)
    before, count = outcome(verb), reads.count
    exchange(copied("after"))
    after = outcome(verb)
    for at in range(count) if every else sorted({1, 2, count // 2}):
        there = copied(f"run{at}")
        reads.count, reads.at, reads.act = 0, at, lambda there=there: exchange(there)
        found = outcome(verb)
        reads.at = -1
        assert is_of_one(found, before, after), f"at read {at} of {count}"


@pytest.mark.parametrize("act", [saved_over, hidden], ids=lambda act: act.__name__)
def test_a_small_file_of_a_model_is_copied_whole(act, place, monkeypatch):
    """Beside the weights lie tokenizers of some megabytes; half of an old and half of a new one is none."""
    place("here")
    file, real, fills = Path("base/merges.txt"), original._fill, []
    file.write_bytes(b"old " * original.CHUNK)

    def meddling(name, *given):
        if name.startswith(file.name):
            fills.append(name)
            if len(fills) == 2:
                act(file, b"new " * original.CHUNK)
        return real(name, *given)

    monkeypatch.setattr(original, "_fill", meddling)
    with pytest.raises(lm.SourceError, match=r"merges.txt of base was changed while it was read"):
        lm.fuse("a", "base", "out")
    assert len(fills) > 1
    assert not Path("out").exists()


GONE = {"gone": os.unlink, "a folder": lambda path: (os.unlink(path), os.mkdir(path))}


@pytest.mark.parametrize("act", GONE.values(), ids=GONE)
def test_a_config_that_goes_before_it_is_copied(act, place, monkeypatch):
    place("here")
    real = writer._copy
    monkeypatch.setattr(writer, "_copy", lambda *given: (real(*given), act(f"a/{CONFIG}")))
    with pytest.raises(lm.SourceError, match=rf"^{CONFIG} (does not exist|is not a file)"):
        lm.convert("a", "out", "peft")
    assert not Path("out").exists()
