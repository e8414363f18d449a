"""Death, errors and interrupts at every call that renames, removes, links or flushes: old or new, never half.

A child process is forked for each; in it the n-th call is the last, or fails.
"""

import errno
import fcntl
import os
import shutil
import signal
import traceback
import warnings
from contextlib import chdir
from importlib.util import find_spec
from pathlib import Path

import pytest

import loramerge as lm
from loramerge.errors import LoramergeError
from loramerge.formats.files import atomic
from tests.helpers.files import content
from tests.helpers.writers import WRITERS, hands, make_inputs, noting, places

CALLS = ("rename", "replace", "unlink", "rmdir", "mkdir", "link", "fsync")
DEAD, REFUSED, BUG, INTERRUPTED = 9, 1, 70, 130
FULL = [errno.ENOSPC, errno.EIO]
HANDS = {  # files that change the disk themselves: all but the last two below an output that is to appear
    "formats/files/atomic.py": "",
    "formats/files/safetensors/write.py": "a file of weights",
    "formats/output.py": "a config, a folder of masks",
    "formats/coefficients.py": "a config, a record",
    "formats/writer.py": "files that are copied",
    "checkpoints/copy.py": "a file of weights",
    "checkpoints/write.py": "a config, an index, small files",
    "routing/folder.py": "a config, a record, a README.md",
    "pages/page.py": "a page",
    "cuda/load.py": "a kernel that was compiled, in the cache of CuPy",
    "cli/failures.py": "what to report of a bug, in the system's folder for such",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The inputs of all writers, made once."""
    place = tmp_path_factory.mktemp("inputs")
    with chdir(place):
        make_inputs(place)
    return place


@pytest.fixture
def here(inputs, tmp_path, monkeypatch):
    """A folder with the inputs, which are of this test alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # that it is asked for is what counts
    copied(inputs, tmp_path)
    return tmp_path


def copied(source, to):
    """A file, or what is in a folder, in another place."""
    if source.is_dir():
        shutil.copytree(source, to, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, to)


def child(act, at, before, error=None, interrupt=False):
    """Act in a child that ends, fails, or is interrupted at its n-th call; its exit status."""
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
            if interrupt:
                return interrupted(real, before, args, kwargs)
            try:
                return None if before else real(*args, **kwargs)
            finally:
                os._exit(DEAD)

        return call

    try:
        os._exit(_acted(act, counted, lambda: count))
    finally:  # a child never goes on with the tests of its parent
        os._exit(BUG)


def interrupted(real, before, args, kwargs):
    """The call, with a Ctrl-C on one side of it."""
    if before:
        os.kill(os.getpid(), signal.SIGINT)
    try:
        return real(*args, **kwargs)
    finally:
        if not before:
            os.kill(os.getpid(), signal.SIGINT)


def _acted(act, counted, count):
    """What became of it, with every call counted."""
    status = 0
    try:
        Path("count").write_text("")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        fcntl.flock = counted(fcntl.flock)  # the lock has a file by then
        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        act()
    except LoramergeError as found:
        status = REFUSED
        Path("said").write_text(str(found))
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BaseException:
        status = BUG
        Path("said").write_text(traceback.format_exc())
    Path("count").write_text(str(count()))
    return status


CASES = pytest.mark.parametrize("overwriting", [False, True], ids=["new", "overwriting"])
FEW = ("a folder", "a file")
KINDS = pytest.mark.parametrize(
    "kind", [k if k in FEW else pytest.param(k, marks=pytest.mark.slow) for k in WRITERS]
)


class Cases:
    """One writer: its old and its new output, and a fresh place for each of its calls."""

    def __init__(self, here, kind, overwriting):
        self.write, self.name = WRITERS[kind]
        self.here, self.overwriting = here, overwriting
        self.inputs = content(here)
        self.old, self.new = (self.made(here / f"whole{new}", new) for new in (0, 1))

    def made(self, place, new):
        place.mkdir()
        self.write(place / self.name, new)
        return content(place / self.name)

    def at_every_call(self, before=True, error=None, interrupt=False):
        """The exit status of each child, after its output was looked at and written once more."""
        for n in range(1, 200):
            place = self.here / f"{n}"
            place.mkdir()
            out = place / self.name
            if self.overwriting:
                copied(self.here / "whole0" / self.name, out)
            status = child(lambda out=out: self.write(out, 1), n, before, error, interrupt)
            left = {f".{self.name}.loramerge-{role}" for role in ("lock", "new", "old")}
            possible = {self.name} if status == INTERRUPTED else {self.name, *left}
            assert {*os.listdir(place)} <= possible, f"call {n}: something else is left"
            atomic.put_back(out)  # as every reader does
            there = content(out) if out.exists() else None
            possible = [self.new, self.old if self.overwriting else None]
            assert there in possible, f"call {n}: half an output"
            self.write(out, 1)
            assert content(out) == self.new
            assert os.listdir(place) == [self.name]
            if n > int((self.here / "count").read_text() or n):
                assert n > 4, "nothing was counted"
                now = content(self.here)
                assert {path: now[path] for path in self.inputs} == self.inputs, "a source was changed"
                return
            yield n, status


@KINDS
@CASES
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_death_at_every_call(here, kind, overwriting, before):
    if kind == "a page" and not pages_are_drawn():
        pytest.skip("pages are not installed")
    for n, status in Cases(here, kind, overwriting).at_every_call(before):
        assert status == DEAD, n


@KINDS
@CASES
@pytest.mark.parametrize("error", FULL, ids=errno.errorcode.get)
def test_an_error_at_every_call(here, kind, overwriting, error):
    if kind == "a page" and not pages_are_drawn():
        pytest.skip("pages are not installed")
    for n, status in Cases(here, kind, overwriting).at_every_call(error=error):
        assert status in (0, REFUSED), f"call {n}: {(here / 'said').read_text()}"


@KINDS
@CASES
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_an_interrupt_at_every_call_leaves_nothing_aside(here, kind, overwriting, before):
    if kind == "a page" and not pages_are_drawn():
        pytest.skip("pages are not installed")
    for n, status in Cases(here, kind, overwriting).at_every_call(before, interrupt=True):
        assert status == INTERRUPTED, f"call {n}: {(here / 'said').read_text()}"


def test_every_writer_is_in_the_table_and_flushes_what_it_wrote(here, monkeypatch):
    seen, flushed = set(), set()
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.add(os.fstat(fd).st_ino))
    for kind, (write, name) in WRITERS.items():
        if kind == "a page" and not pages_are_drawn():
            seen.add(("pages/page.py", "new_file"))
            continue
        place = here / kind
        place.mkdir()
        with noting(seen):
            write(place / name, 0)
        made = {place, *place.rglob("*")}
        assert not [path for path in made if path.stat().st_ino not in flushed], kind
    assert seen == places(), "a place that writes is tried by no writer of tests/helpers/writers.py"


def test_nobody_else_changes_the_disk():
    """Who writes goes through `new_file` or `new_folder`; who is new here says why it does not have to."""
    assert hands() == HANDS.keys()


READERS = {  # of what was left aside by a death between the two renames of an overwrite
    "a": [lambda: lm.load("a"), lambda: lm.combine(["a", "b"]), lambda: lm.inspect("a"),
          lambda: lm.diff("a", "b"),
          lambda: lm.check("a", "peft"), lambda: lm.resize("a", rank=1), lambda: lm.convert("a", "x"),
          lambda: lm.route(["a", "b"]), lambda: lm.open(["a", "b"]), lambda: lm.plan(["b", "a"])],
    "masks": [lambda: lm.restore("masks", "a"), lambda: lm.replay("masks"), lambda: lm.load_router("masks"),
              lambda: lm.route(["masks"])],
    "bundle": [lambda: lm.load_bundle("bundle"), lambda: lm.check("bundle", "peft")],
    "base": [lambda: lm.fuse("tiny", "base", "f"), lambda: lm.extract("tuned", "base", "e"),
             lambda: lm.combine(["tiny"], base="base"), lambda: lm.check("tiny", "peft", base="base")],
    "tuned": [lambda: lm.extract("tuned", "base", "e")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "n"), [(name, n) for name, each in READERS.items() for n in range(len(each))]
)
def test_whoever_reads_it_puts_back_what_a_death_left_aside(here, name, n):
    if name == "bundle":
        lm.route(["a", "b"], out="bundle")
    os.rename(name, f".{name}.loramerge-old")
    READERS[name][n]()
    assert os.path.isdir(name)
    assert not os.path.lexists(f".{name}.loramerge-old")


def pages_are_drawn():
    return all(find_spec(name) is not None for name in ("altair", "vl_convert"))
