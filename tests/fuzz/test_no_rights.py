"""Folders that may not be searched or listed: a sentence that names them. Root may all: it is played."""

import errno
import os
import shutil

import pytest

import loramerge as lm
from tests.helpers.files import folder, tensors
from tests.helpers.models import random_model, save_model

Q = "model.layers.0.self_attn.q_proj"
READERS = {  # the folder that is closed -> what reads it
    "a": {
        "inspect": lambda: lm.inspect("a"),
        "check": lambda: lm.check("a", "peft"),
        "diff": lambda: lm.diff("a", "b"),
        "combine": lambda: lm.combine(["a", "b"]),
        "a folder of it": lambda: lm.combine(["many"]),
        "resize": lambda: lm.resize("a", rank=1),
        "route": lambda: lm.route(["a", "b"]),
    },
    "base": {
        "fuse": lambda: lm.fuse("a", "base", "o"),
        "extract": lambda: lm.extract("tuned", "base", "o", rank=1),
    },
    "masks": {"restore": lambda: lm.restore("masked", "a")},
    "task_0": {"bundle": lambda: lm.combine(["bundle"], row="a")},
}
CASES = [(closed, verb) for closed, verbs in READERS.items() for verb in verbs]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("made")
    for seed, name in enumerate("ab"):
        folder(place / name, tensors(seed, shapes={Q: (16, 16)}))
        shutil.copytree(place / name, place / "many" / name)
    save_model(place / "base", random_model())
    save_model(place / "tuned", random_model(1))
    lm.combine([place / "a", place / "b"], "mergevla", rank=1, out=place / "masked")
    lm.route([place / "a", place / "b"], gate="task", out=place / "bundle")
    return place


@pytest.mark.parametrize("calls", [("stat",), ("stat", "listdir", "scandir", "open")], ids=["search", "read"])
@pytest.mark.parametrize(("closed", "verb"), CASES)
def test_a_folder_without_rights(closed, verb, calls, made, monkeypatch):
    monkeypatch.chdir(made)
    before = sorted(made.rglob("*"))

    def refusing(real, own):
        def call(path=".", *given, **more):
            parts = os.fspath(path).split("/") if isinstance(path, str | os.PathLike) else []
            if closed in (parts if own else parts[:-1]):
                raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
            return real(path, *given, **more)

        return call

    for name in calls:
        monkeypatch.setattr(os, name, refusing(getattr(os, name), name in ("listdir", "scandir")))
    with pytest.raises(lm.SourceError, match=rf"(^|/){closed}\b.* cannot be read: Permission denied"):
        READERS[closed][verb]()
    monkeypatch.undo()
    assert sorted(made.rglob("*")) == before
