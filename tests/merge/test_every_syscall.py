"""Death and errors at every call that renames, removes, links or flushes: old or new, never half.

A child process is forked for each; in it the n-th call is the last, or fails.
"""

import errno
import os
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import LoramergeError
from tests.helpers.files import content, folder, tensors
from tests.helpers.models import random_model, save_model

Q = "model.layers.0.self_attn.q_proj.weight"
CALLS = ("rename", "replace", "unlink", "rmdir", "mkdir", "link", "fsync")
DEAD, REFUSED, BUG = 9, 1, 70
FULL = [errno.ENOSPC, errno.EIO]


def merged(out, new, seed=0):
    lm.combine(["a", "b"][: 1 + new], "svd", rank=1, out=out, overwrite=True, threads=1)


def masked(out, new):
    lm.combine(["a", "b"][: 1 + new], "mergevla", rank=1, out=out, overwrite=True, threads=1)


def fused(out, new):
    lm.fuse("tiny", "base", out, scale=1.0 + new, overwrite=True, threads=1)


def extracted(out, new):
    lm.extract("tuned", "base", out, rank=1 + new, overwrite=True, threads=1)


def converted(out, new):
    lm.resize("a", rank=1 + new, out=out, overwrite=True)


WRITERS = {  # what is written -> (how, the name)
    "a folder": (merged, "m"),
    "a file": (merged, "m.safetensors"),
    "a folder with masks": (masked, "m"),
    "a smaller adapter": (converted, "m"),
    "a fused model": (fused, "m"),
    "an extracted adapter": (extracted, "m.safetensors"),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        folder(tmp_path / name, tensors(seed))
    base = random_model(0)
    moved = {**base, Q: base[Q] + np.outer(np.arange(16.0), np.ones(16)).astype(base[Q].dtype)}
    save_model(tmp_path / "base", base)
    save_model(tmp_path / "tuned", moved)
    folder(tmp_path / "tiny", tensors(2, shapes={Q.removesuffix(".weight"): (16, 16)}))
    return tmp_path


def child(act, at, before, error=None):
    """Act in a child that ends, or fails, at its n-th call; its exit status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    count = 0

    def counted(real):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count != at:
                return real(*args, **kwargs)
            if error is not None:
                raise OSError(error, os.strerror(error))
            try:
                return None if before else real(*args, **kwargs)
            finally:
                os._exit(DEAD)

        return call

    status = 0
    try:
        Path("count").write_text("")
        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        act()
    except LoramergeError as found:
        status = REFUSED
        Path("said").write_text(str(found))
    except BaseException:
        status = BUG
        Path("said").write_text(traceback.format_exc())
    Path("count").write_text(str(count))
    os._exit(status)


CASES = pytest.mark.parametrize("overwriting", [False, True], ids=["new", "overwriting"])
KINDS = pytest.mark.parametrize(
    "kind", [k if i < 2 else pytest.param(k, marks=pytest.mark.slow) for i, k in enumerate(WRITERS)]
)


class Cases:
    """One writer: its old and its new output, and a fresh place for each of its calls."""

    def __init__(self, here, kind, overwriting):
        self.write, self.name = WRITERS[kind]
        self.here, self.overwriting = here, overwriting
        self.old, self.new = (self.made(here / f"whole{new}", new) for new in (0, 1))

    def made(self, place, new):
        place.mkdir()
        self.write(place / self.name, new)
        return content(place / self.name)

    def at_every_call(self, before=True, error=None):
        """The exit status of each child, after its output was looked at and written once more."""
        for n in range(1, 200):
            place = self.here / f"{n}"
            place.mkdir()
            out = place / self.name
            if self.overwriting:
                self.write(out, 0)
            status = child(lambda out=out: self.write(out, 1), n, before, error)
            there = content(out) if out.exists() else None
            possible = [self.new, None, *([self.old] if self.overwriting else [])]
            assert there in possible, f"call {n}: half an output"
            self.write(out, 1)
            assert content(out) == self.new
            assert os.listdir(place) == [self.name]
            if n > int((self.here / "count").read_text() or n):
                assert n > 4, "nothing was counted"
                return
            yield n, status


@KINDS
@CASES
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_death_at_every_call(here, kind, overwriting, before):
    for n, status in Cases(here, kind, overwriting).at_every_call(before):
        assert status == DEAD, n


@KINDS
@CASES
@pytest.mark.parametrize("error", FULL, ids=errno.errorcode.get)
def test_an_error_at_every_call(here, kind, overwriting, error):
    for n, status in Cases(here, kind, overwriting).at_every_call(error=error):
        assert status in (0, REFUSED), f"call {n}: {(here / 'said').read_text()}"
