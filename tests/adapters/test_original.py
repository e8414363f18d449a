"""A file is read as it was when it was opened, or not at all."""

import gc
import hashlib
import os
import socket
from contextlib import nullcontext

import pytest

from loramerge.adapters import original
from loramerge.adapters.original import noted, open_original, read_whole
from loramerge.errors import SourceError

BEFORE, AFTER = b"before" * 1000, b"after!" * 1000


def whole(found):
    buffer = bytearray(found.size)
    found.read_into(memoryview(buffer), 0)
    return bytes(buffer)


def in_place(path):
    path.write_bytes(AFTER)


def one_byte(path):
    with path.open("r+b") as stream:
        stream.seek(100)
        stream.write(b"X")


def longer(path):
    with path.open("ab") as stream:
        stream.write(b"X")


def shorter(path):
    os.truncate(path, 10)


def replaced(path):
    path.with_name("other").write_bytes(AFTER)
    os.replace(path.with_name("other"), path)


def removed(path):
    path.unlink()


def mode(path):
    os.chmod(path, 0o600)


def linked(path):
    os.link(path, path.with_name("link"))


CHANGES = {in_place, one_byte, longer, shorter}
SWAPS = {replaced, removed}
TOUCHES = {mode, linked}
by_name = {"key": lambda change: change.__name__}


@pytest.fixture(params=["kept", "opened for each read"])
def found(request, tmp_path, monkeypatch):
    """A file just written and opened at once, so that a change falls into the same tick of the clock."""
    if request.param != "kept":
        monkeypatch.setattr(original, "_room", [])
    (tmp_path / "file").write_bytes(BEFORE)
    return open_original(tmp_path / "file", "file")


@pytest.mark.parametrize("change", sorted(CHANGES, **by_name))
@pytest.mark.parametrize("act", [whole, lambda f: f.sha256(), lambda f: f.confirm()])
def test_a_change_is_seen_by_everything_that_comes_after_it(found, change, act):
    change(found.path)
    with pytest.raises(SourceError, match="file was changed while it was read"):
        act(found)


@pytest.mark.parametrize("change", sorted(SWAPS, **by_name))
def test_what_is_replaced_goes_on_being_read_as_it_was_or_is_refused(found, change):
    kept = found._fd is not None
    change(found.path)
    if kept:
        assert (whole(found), found.sha256()) == (BEFORE, hashlib.sha256(BEFORE).hexdigest())
        found.confirm()
        return
    for act in (whole, lambda f: f.sha256(), lambda f: f.confirm()):
        with pytest.raises(SourceError, match=r"was replaced|does not exist"):
            act(found)


@pytest.mark.parametrize("change", sorted(TOUCHES, **by_name))
def test_other_rights_or_one_more_name_are_no_change(found, change):
    change(found.path)
    assert (whole(found), found.sha256()) == (BEFORE, hashlib.sha256(BEFORE).hexdigest())
    found.confirm()


def part(found, start, size):
    found.read_into(memoryview(bytearray(size)), start)


def hidden(change, path):
    """A change that sets the time of writing back."""
    then = os.stat(path)
    change(path)
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))


@pytest.mark.parametrize("act", [lambda f: f.sha256(), lambda f: part(f, 90, 20), whole])
@pytest.mark.parametrize("change", [in_place, one_byte], **{"ids": lambda change: change.__name__})
def test_a_change_that_hides_its_time_is_found_by_reading_again(found, change, act):
    act(found)
    mode(found.path)
    found.confirm()  # which read all of it again
    hidden(change, found.path)
    with pytest.raises(SourceError, match="was changed"):
        found.confirm()


def test_of_a_hidden_change_only_what_was_read_before_it_counts(found):
    part(found, 0, 50)
    hidden(one_byte, found.path)  # the hundredth
    found.confirm()
    part(found, 90, 20)
    found.confirm()
    assert len(found._spans) == 2
    hidden(in_place, found.path)
    part(found, 90, 20)  # now with two contents
    with pytest.raises(SourceError, match="was changed"):
        found.confirm()


@pytest.mark.parametrize("apart", [False, True], ids=["in one work", "in a part of it"])
def test_of_a_file_that_is_opened_twice_the_first_answers_for_both(tmp_path, apart):
    (tmp_path / "file").write_bytes(BEFORE)
    with noted() as seen:
        first = open_original(tmp_path / "file", "file")
        with noted() if apart else nullcontext():
            second = open_original(tmp_path / "file", "file")
            part(second, 0, 50)
        part(second, 90, 20)
    assert list(seen.values()) == [first]
    hidden(one_byte, first.path)
    with pytest.raises(SourceError, match="was changed"):
        first.confirm()


def test_a_file_that_is_touched_again_and_again_is_confirmed_at_last_or_refused(found, monkeypatch):
    whole(found)
    fill, left = original._fill, [3]

    def touching(*given):
        if left[0]:
            left[0] -= 1
            mode(found.path)
        fill(*given)

    monkeypatch.setattr(original, "_fill", touching)
    mode(found.path)
    found.confirm()
    left[0] = -1
    mode(found.path)
    with pytest.raises(SourceError, match="was changed"):
        found.confirm()


def test_a_held_file_that_hides_a_change_is_found(tmp_path):
    (tmp_path / "config").write_bytes(BEFORE)
    with noted() as seen:
        read_whole(tmp_path / "config", "config", 10**6)
        hidden(in_place, tmp_path / "config")
        with pytest.raises(SourceError, match="config was changed"):  # read twice, with two contents
            read_whole(tmp_path / "config", "config", 10**6)
    with pytest.raises(SourceError, match="config was changed"):
        seen[tmp_path / "config"].confirm()


def test_a_change_while_bytes_are_read_spoils_them(found, monkeypatch):
    read = os.preadv

    def torn(fd, views, at):
        in_place(found.path)
        return read(fd, views, at)

    monkeypatch.setattr(os, "preadv", torn)
    with pytest.raises(SourceError, match="was changed"):
        whole(found)


def test_a_small_file_is_what_was_read_of_it(tmp_path):
    path = tmp_path / "config"
    path.write_bytes(BEFORE)
    with noted() as seen:
        assert read_whole(path, "config", len(BEFORE)) == BEFORE
    assert list(seen) == [path]
    replaced(path)
    assert seen[path].sha256() == hashlib.sha256(BEFORE).hexdigest()
    seen[path].confirm()  # its bytes are held
    path.write_bytes(BEFORE)
    with noted() as seen:
        read_whole(path, "config", 10**6)
        in_place(path)
        with pytest.raises(SourceError, match="config was changed"):  # read twice, with two contents
            read_whole(path, "config", 10**6)
    with pytest.raises(SourceError, match="config was changed"):
        seen[path].confirm()


def test_no_more_than_the_limit_is_read(tmp_path):
    (tmp_path / "x").write_bytes(b"x" * 100)
    assert len(read_whole(tmp_path / "x", "x", 10)) == 11


def test_few_descriptors_are_kept_and_each_is_given_back(tmp_path):
    gc.collect()  # what other tests have left
    room = len(original._room)
    (tmp_path / "file").write_bytes(BEFORE)
    before = len(os.listdir("/proc/self/fd"))
    many = [open_original(tmp_path / "file", "file") for _ in range(room + 5)]
    assert len(os.listdir("/proc/self/fd")) == before + room
    assert whole(many[-1]) == BEFORE
    del many
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(original._room) == room


NO_FILES = ["pipe", "folder", "socket", "/dev/zero", "/dev/tty", "absent", "nul\0", "loop"]


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_refused_and_not_even_opened(tmp_path, monkeypatch, kind):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server, monkeypatch.context() as patch:
        server.bind("socket")
        patch.setattr(os, "open", None)
        with pytest.raises(SourceError, match=r"^as given "):
            open_original(tmp_path / kind, "as given")
        with pytest.raises(SourceError, match=r"^as given "):
            read_whole(tmp_path / kind, "as given", 1)
