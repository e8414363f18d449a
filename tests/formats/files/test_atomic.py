"""Output appears whole or not at all: on errors, under contention, and whenever we are killed."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from loramerge.errors import OutputError
from loramerge.formats.files import atomic
from loramerge.formats.files.atomic import check_output, locked, new_file, new_folder, writing

ROOT = Path(__file__).parents[3]
NAMES = ("adapter_config.json", "adapter_model.safetensors")
KINDS = ("file", "folder")


def fill(out, text, kind, overwrite=False):
    """Write OUT as a merge would."""
    if kind == "file":
        with new_file(out, overwrite) as new:
            new.write_text(text)
    else:
        with new_folder(out, overwrite) as new:
            for name in NAMES:
                (new / name).write_text(text)


def content(out):
    """What is at OUT, as one text; None if nothing is."""
    if not out.exists():
        return None
    if out.is_file():
        return out.read_text()
    assert sorted(os.listdir(out)) == sorted(NAMES)
    (text,) = {(out / name).read_text() for name in NAMES}
    return text


def test_a_former_folder_that_cannot_be_removed_is_named_and_the_new_one_is_there(tmp_path, monkeypatch):
    """As where somebody else owns a folder in it; so does the next run, until it is removed."""

    def refused(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "adapter_config.json").write_text("former")
    for before in (r"^\S+/m is complete, but ", "^"):
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", refused)
            words = r"\S+/\.m\.loramerge-old cannot be removed: Permission denied. Remove it by hand\.$"
            with (
                pytest.raises(OutputError, match=before + words),
                new_folder(tmp_path / "m", overwrite=True) as new,
            ):
                (new / "adapter_config.json").write_text("new")
        assert (tmp_path / "m" / "adapter_config.json").read_text() == "new"
        atomic.PLACED.clear()  # as a command begins
    with new_folder(tmp_path / "m", overwrite=True) as new:
        (new / "adapter_config.json").write_text("newer")
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("kind", KINDS)
def test_output_appears_under_its_name_and_leaves_nothing_else(tmp_path, kind):
    out = tmp_path / "OUT"
    fill(out, "first", kind)
    assert content(out) == "first"
    fill(out, "second", kind, overwrite=True)
    assert content(out) == "second"
    assert os.listdir(tmp_path) == ["OUT"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [None, "former"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_keeps_what_was_there_and_leaves_nothing_else(
    tmp_path, monkeypatch, kind, before, error
):
    out = tmp_path / "OUT"
    if before:
        fill(out, before, kind)

    def fail(path, text):
        path.touch()
        raise error

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(error):
        fill(out, "half", kind, overwrite=True)
    assert content(out) == before
    assert os.listdir(tmp_path) == (["OUT"] if before else [])


@pytest.mark.parametrize("kind", KINDS)
def test_modes_follow_the_umask(tmp_path, kind):
    out = tmp_path / "OUT"
    mask = os.umask(0o027)
    try:
        fill(out, "text", kind)
    finally:
        os.umask(mask)
    assert out.stat().st_mode & 0o777 == (0o640 if kind == "file" else 0o750)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [None, "former"])
def test_a_symlink_is_written_through(tmp_path, kind, before):
    far = tmp_path / "far"
    far.mkdir()
    if before:
        fill(far / "real", before, kind)
    out = tmp_path / "OUT"
    out.symlink_to(far / "real")
    fill(out, "new", kind, overwrite=True)
    assert out.is_symlink()
    assert content(far / "real") == "new"
    assert os.listdir(far) == ["real"]


def test_an_empty_file_or_folder_is_no_loss(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for kind in KINDS:
        fill(tmp_path / kind, "new", kind)
        assert content(tmp_path / kind) == "new"


def test_a_folder_that_cannot_be_put_in_place_leaves_the_former_one(tmp_path, monkeypatch):
    out = tmp_path / "OUT"
    fill(out, "former", "folder")
    rename = os.rename

    def refuse(source, target):
        if str(source).endswith("-new"):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OutputError, match="no space left while writing"):
        fill(out, "new", "folder", overwrite=True)
    assert content(out) == "former"
    assert os.listdir(tmp_path) == ["OUT"]


def scene(folder):
    """A folder with everything that OUT can be."""
    (folder / "file").write_text("text")
    os.mkfifo(folder / "pipe")
    (folder / "empty").mkdir()
    fill(folder / "adapter", "text", "folder")
    (folder / "foreign").mkdir()
    for name in ("adapter_config.json", "b", "thesis\x1b.tex", "a", "c"):
        (folder / "foreign" / name).write_text("text")
    (folder / "nested" / "README.md").mkdir(parents=True)
    (folder / "link").symlink_to(folder / "adapter")


REFUSALS = {  # OUT, overwrite, the kind that is to be written -> words of the refusal
    "a file": ("file", False, "file", "file exists. .*overwrite=True"),
    "a full folder": ("adapter", False, "folder", "adapter is not empty. .*overwrite=True"),
    "a link to a full folder": ("link", False, "folder", "link is not empty. .*overwrite=True"),
    "a file for a folder": ("file", True, "folder", "file is a file"),
    "a folder for a file": ("adapter", True, "file", "adapter is a folder"),
    "an empty folder for a file": ("empty", True, "file", "empty is a folder"),
    "a pipe": ("pipe", True, "file", "pipe is not a regular file"),
    "a pipe for a folder": ("pipe", True, "folder", "pipe is a file"),
    "foreign files": ("foreign", True, "folder", r"would delete a, b, c and 1 more"),
    "foreign files, not overwriting": ("foreign", False, "folder", "would delete a, b, c"),
    "a folder in the folder": ("nested", True, "folder", "would delete README.md"),
    "a missing parent": ("x/y/OUT", True, "file", "the folder .*/x/y does not exist. Create it"),
    "a file as a parent": ("file/OUT", True, "file", "/file is not a folder"),
    "a file as a grandparent": ("file/x/OUT", True, "folder", "/file is not a folder"),
    "a name too long": ("x" * 300, True, "file", "File name too long"),
    "the root": ("/", True, "folder", "would delete"),
}


@pytest.mark.parametrize(("out", "overwrite", "kind", "words"), REFUSALS.values(), ids=REFUSALS)
def test_an_output_that_would_fail_or_destroy_is_refused(tmp_path, out, overwrite, kind, words):
    scene(tmp_path)
    before = sorted(os.walk(tmp_path))
    with pytest.raises(OutputError, match=words):
        check_output(tmp_path / out, overwrite, folder=kind == "folder")
    with pytest.raises(OutputError, match=words):
        fill(tmp_path / out, "new", kind, overwrite)
    assert sorted(os.walk(tmp_path)) == before


def test_a_parent_without_write_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(OutputError, match="you may not write in the folder"):
        check_output(tmp_path / "OUT", False, folder=False)


HOLD = """
import sys
from pathlib import Path
from loramerge.formats.files.atomic import new_folder
with new_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_process_is_refused_until_the_first_one_ends(tmp_path, kind):
    out = tmp_path / "OUT"
    command = [sys.executable, "-c", HOLD, str(out)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match=r"Another loramerge is writing to .*OUT"):
            fill(out, "new", kind)
        holder.kill()
    fill(out, "new", kind)
    assert content(out) == "new"
    assert os.listdir(tmp_path) == ["OUT"]


def test_what_fails_in_the_work_is_told_by_the_name_of_the_output(tmp_path):
    with (
        pytest.raises(OutputError, match=r"writing .*/OUT/x\. Free some") as told,
        new_folder(tmp_path / "OUT") as new,
        writing(new / "x"),
    ):
        raise OSError(28, "No space left on device")
    assert "loramerge-new" not in str(told.value)


def test_threads_that_fight_for_an_output_never_hold_it_together(tmp_path):
    out, inside, wins = tmp_path / "OUT", [], []

    def fight():
        for _ in range(200):
            try:
                with locked(out):
                    inside.append(None)
                    wins.append(len(inside))
                    inside.pop()
            except OutputError:
                pass

    threads = [threading.Thread(target=fight) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(wins) == {1}
    assert os.listdir(tmp_path) == []


def counting(left):
    """Every call that changes the disk is counted, and the process dies just before the n-th."""

    def counted(call):
        def wrapper(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            return call(*args, **kwargs)

        return wrapper

    for module, names in ((os, "mkdir rename replace fsync unlink rmdir"), (shutil, "rmtree")):
        for name in names.split():
            setattr(module, name, counted(getattr(module, name)))


def crash_at(n, out, kind, overwrite):
    """Whether a process that writes died, in the n-th call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the threads that this one has
        child = os.fork()
    if not child:
        try:
            counting(n)
            fill(out, "new", kind, overwrite)
            os._exit(0)
        finally:  # a child never goes on with the tests of its parent
            os._exit(70)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_crash_at_any_moment_leaves_old_or_new_and_the_next_run_succeeds(tmp_path, kind, overwrite):
    former = "former" if overwrite else None
    absences = 0
    for n in range(100):
        out = tmp_path / str(n) / "OUT"
        out.parent.mkdir()
        if overwrite:
            fill(out, former, kind)
        died = crash_at(n, out, kind, overwrite)
        assert content(out) in ((None, former, "new") if died else ("new",))
        absences += overwrite and content(out) is None
        fill(out, "next", kind, overwrite=True)
        assert content(out) == "next"
        assert os.listdir(out.parent) == ["OUT"]
        if not died:
            break
    assert not died
    assert n >= 4
    assert absences == (kind == "folder" and overwrite)


def test_a_crash_between_the_two_renames_is_undone_by_the_next_run(tmp_path):
    out = tmp_path / "OUT"
    fill(out, "former", "folder")
    os.rename(out, tmp_path / ".OUT.loramerge-old")
    with pytest.raises(OutputError, match="OUT is not empty"):
        fill(out, "new", "folder")
    assert content(out) == "former"
    assert os.listdir(tmp_path) == ["OUT"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_gets_full_is_a_sentence_whoever_writes(tmp_path, kind, error):
    out = tmp_path / "out"
    with (
        pytest.raises(OutputError, match="There is no space left"),
        (new_file if kind == "file" else new_folder)(out),
    ):
        raise OSError(error, os.strerror(error))
    assert not list(tmp_path.iterdir())
