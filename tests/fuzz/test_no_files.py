"""Pipes, sockets, devices and folders in the place of every file that is read: a sentence, at once."""

import ast
import os
import shutil
import signal
import socket
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.consumers import CONSUMERS
from loramerge.errors import LoramergeError
from loramerge.request.recipe_text import read
from loramerge.routing.rows import read_rows
from tests.helpers.files import bare, folder, tensors
from tests.helpers.models import random_model, save_model
from tests.helpers.writers import PACKAGE
from tests.helpers.writers import _changes as writes

Q = "model.layers.0.self_attn.q_proj"


def listening(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(path))  # such an address is short


KINDS = {
    "a pipe": os.mkfifo,
    "a socket": listening,
    "a device": lambda path: os.symlink("/dev/zero", path),
    "a folder": os.mkdir,
    "a link to itself": lambda path: os.symlink(path, path),
}


SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two adapters, a merge of them, a model."""
    place = tmp_path_factory.mktemp("made")
    for seed, name in enumerate("ab"):
        folder(place / name, tensors(seed))
        (place / name / "README.md").write_text("---\nbase_model: tiny\n---\nWrites poems.\n")
    lm.combine([place / "a", place / "b"], "mergevla", rank=1, out=place / "m", threads=1)
    lm.route([place / "a", place / "b"], out=place / "r", threads=1)
    save_model(place / "base", random_model(0), shards=2)
    folder(place / "tiny", tensors(2, shapes={Q: (16, 16)}))
    return place


@pytest.fixture(autouse=True)
def here(made, tmp_path, monkeypatch):
    """All of it anew; and whoever waits for a pipe is ended."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)

    def ended(*_):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, ended)
    signal.alarm(60)
    yield tmp_path
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def described():
    lm.combine(["a", "b"], "sg", describe="poems")


def fused():
    return lm.fuse("tiny", "base", "f")


def gated(name):
    return lambda: lm.load("a", prompt_gate=name)


def table(name):
    return lambda: read_rows(Path(name))


def bundled():
    lm.load_bundle("r").save("again")


READERS = {  # the file -> what reads it
    "rows.json": table("rows.json"),
    "rows.npz": table("rows.npz"),
    "rows.safetensors": table("rows.safetensors"),
    "gate.npz": gated("gate.npz"),
    "gate.safetensors": gated("gate.safetensors"),
    "inputs.npz": lambda: lm.restore("m", inputs="inputs.npz"),
    "m/masks/router.safetensors": lambda: lm.load_router("m"),
    "r/loramerge.json": lambda: lm.load_bundle("r"),
    "r/router.safetensors": lambda: lm.load_bundle("r"),
    "r/task_0/adapter_model.safetensors": bundled,
    "r/task_1/adapter_config.json": bundled,
    "r/task_1/adapter_model.safetensors": lambda: lm.check("r", "peft"),
    "report.safetensors": lambda: lm.report(["report.safetensors"], methods=["svd"]),
    "a/adapter_model.safetensors": lambda: lm.combine(["a", "b"]),
    "a/adapter_config.json": lambda: lm.combine(["a", "b"]),
    "lone.safetensors": lambda: lm.combine(["lone.safetensors"], alpha=1),
    "lone.bin": lambda: lm.combine(["lone.bin"], alpha=1, allow_pickle=True),
    "lone.npz": lambda: lm.combine(["lone.npz"], alpha=1),
    "a/README.md": described,
    "said.json": lambda: lm.combine(["a", "b"], "sg", describe="x", descriptions="said.json"),
    "descriptions.json": described,
    "vectors.npz": lambda: lm.combine(["a", "b"], "sg", describe="x", embedding="vectors.npz"),
    "m/loramerge.json": lambda: lm.replay("m"),
    "r.json": lambda: lm.replay("r.json"),
    "r.yaml": lambda: read("r.yaml"),
    "list.txt": lambda: lm.combine(["@list.txt"]),
    "names.txt": lambda: lm.combine(["a", "b"], rename="names.txt"),
    "start": lambda: lm.combine(["a", "b"], initial={"a": "start"}),
    "m/masks/masks.safetensors": lambda: lm.restore("m", "a", "t"),
    "base/config.json": fused,
    "base/tokenizer.json": fused,
    "base/model.safetensors.index.json": fused,
    "base/model-00001-of-00002.safetensors": fused,
    "tuned.safetensors": lambda: lm.extract("tuned.safetensors", "base", "x"),
    "inspected.safetensors": lambda: lm.inspect("inspected.safetensors"),
    "converted.safetensors": lambda: lm.convert("converted.safetensors", "x", "peft"),
    "differs.safetensors": lambda: lm.diff("differs.safetensors", "a"),
    "checked.safetensors": lambda: [lm.check("checked.safetensors", name) for name in CONSUMERS],
}


OWN = {  # what is read by other ways than `opened`, which refuses what is no file: nothing that a user names
    "adapters/original.py": "`opened` itself",
    "checkpoints/remote.py": "the Hub, by range",
    "checkpoints/write.py": "what it has just written",
    "cuda/load.py": "its own kernels",
    "cli/failures.py": "nothing: the null device",
    "formats/files/atomic.py": "what it has just written",
    "formats/files/npz.py": "an entry of an archive that was opened",
    "formats/files/pickles.py": "an entry of an archive that was opened",
    "formats/remote.py": "the Hub, by range",
    "formats/output.py": "what it has just written",
    "formats/training.py": "what it has just written",
    "hub/commits.py": "what the Hub's client has just downloaded",
    "pages/bundle.py": "its own script and style",
}


def test_every_file_is_read_through_one_door():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and _reads(node):
                found.add(str(path.relative_to(PACKAGE)))
    assert found == OWN.keys()


def _reads(call):
    name, owner = getattr(call.func, "attr", ""), ast.unparse(getattr(call.func, "value", ast.Name("")))
    if isinstance(call.func, ast.Name):
        return call.func.id in ("open", "safe_open") and not writes(call)
    return (
        (name in ("read_text", "read_bytes", "fromfile", "memmap") and owner != "original")
        or (name == "open" and not writes(call))
        or (name == "load" and owner in ("np", "torch", "pickle"))
    )


@pytest.mark.parametrize("kind", [k if k == "a pipe" else pytest.param(k, marks=SLOW) for k in KINDS])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file(here, name, kind):
    place = here / name
    place.parent.mkdir(exist_ok=True)
    if os.path.lexists(place):
        place.unlink()
    KINDS[kind](place)
    with pytest.raises(LoramergeError) as refused:
        READERS[name]()
    assert str(refused.value).isprintable()
    assert not (here / "f").exists()


def test_the_readers_read():
    """Each of them accepts a file there, or the test above would prove nothing."""
    bare(here_now() / "lone.safetensors", tensors(0))
    np.savez("vectors.npz", a=np.ones(2))
    for name in ("a/adapter_model.safetensors", "lone.safetensors", "base/config.json", "m/loramerge.json"):
        READERS[name]()


def here_now():
    return Path.cwd()
