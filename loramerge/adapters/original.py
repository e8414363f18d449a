"""The files behind an adapter, as they were when they were first read.

A trainer may save over its checkpoint while it is merged. So the identity of a file is held from opening
to the end, and compared at every read. While few files are open, so is the descriptor: a file that is
*replaced* goes on being read as it was. Times can be set back, all but that of the last change of any kind;
where this one moved, what was read is read again, and compared by its sums.
"""

from __future__ import annotations

import hashlib
import os
import resource
import stat
import sys
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from loramerge.adapters.near import nearby
from loramerge.adapters.presence import unreadable
from loramerge.adapters.reading import note_read
from loramerge.adapters.spans import Spans
from loramerge.errors import ChangedError, LoramergeError, SourceError, printable

MOST = 256  # descriptors that are kept; beyond them a file is opened for each read
CHUNK = 2**20
AGAIN = 8  # times that a file may be touched while it is confirmed
BLOCK = 1 << 16  # bytes that are asked for of a file that may still grow
TICK = 20  # milliseconds, more than any kernel's
COARSE = 5 if sys.platform == "linux" else time.CLOCK_REALTIME  # the clock of file times
_noted: ContextVar[dict[Path, Original] | None] = ContextVar("noted", default=None)


class Identity(NamedTuple):
    """What tells one state of a file from another; `changed` moves also when its bytes stay (chmod, link)."""

    device: int
    inode: int
    modified: int
    size: int
    changed: int

    @classmethod
    def of(cls, found: os.stat_result) -> Identity:
        return cls(found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size, found.st_ctime_ns)

    def same_bytes(self, other: Identity) -> bool:
        return self[:-1] == other[:-1]


class Original:
    """A file as it was when it was opened.

    Args:
        name: for messages.   identity: when it was opened.   fd: kept open, or None.
        digest: the SHA-256 of its bytes, where they were all read at once.
    """

    def __init__(
        self, path: Path, name: str, identity: Identity, fd: int | None = None, digest: str | None = None
    ):
        self.path, self.name, self.identity, self._fd = path, name, identity, fd
        self._hashed, self._held = digest, digest is not None
        self._spans = Spans()
        self._seen = identity.changed  # until then, what was read is known to be of one state
        if fd is not None:
            weakref.finalize(self, _release, fd)

    @property
    def size(self) -> int:
        return self.identity.size

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with the bytes from `start` on. Any number of threads may read at once.

        Raises:
            SourceError: the file has changed since it was opened, or cannot be read.
        """
        with self._opened() as fd:
            _fill(self.name, fd, buffer, start)
        self._spans.note(buffer, start)

    def pieces(self) -> Iterator[memoryview]:
        """All its bytes; a piece is overwritten by the next. Errors as for `read_into`."""
        return _pieces(self.read_into, 0, self.size)

    def take(self, other: Original) -> None:
        """Answer for what was, and will be, read by another one of the same file."""
        if other._spans is not self._spans:
            self._spans.take(other._spans)
            other._spans = self._spans

    def sha256(self) -> str:
        """The SHA-256 of its bytes as they are merged, in hexadecimal. Errors as for `read_into`."""
        if self._hashed is None:
            with self._opened() as fd:
                self._hashed = self._hash(fd)
        return self._hashed

    def confirm(self) -> None:
        """Raises SourceError: it is no longer what was opened, neither there nor in what is kept of it."""
        if self._held:  # only one that is being written is no whole
            there = _state(self.path)
            if there is None or there[:2] != self.identity[:2]:
                return
        with self._opened() as fd:
            for _ in range(AGAIN):
                if (now := Identity.of(os.fstat(fd)).changed) == self._seen:
                    return
                if not self._is_as_read(fd):
                    break
                self._seen = now  # unless it moved meanwhile
        raise changed(self.name, "was changed")

    def confirm_place(self) -> None:
        """Raises SourceError: what lies at its path is no longer what was opened."""
        now = _state(self.path)
        if now is None or not now.same_bytes(self.identity):
            raise changed(self.name, "was changed" if now else "was removed")
        self.confirm()

    @contextmanager
    def _opened(self) -> Iterator[int]:
        with opened(self.path, self.name) if self._fd is None else _same(self._fd, self.name) as fd:
            self._compare(fd)
            yield fd
            self._compare(fd)

    def _compare(self, fd: int) -> None:
        now = Identity.of(os.fstat(fd))
        if not now.same_bytes(self.identity):
            how = "was replaced" if now[:2] != self.identity[:2] else "was changed"
            raise changed(self.name, how)

    def _is_as_read(self, fd: int) -> bool:
        """Whether all that was read is still there."""
        if self._hashed is not None and self._hash(fd) != self._hashed:
            return False
        for start, size, said in sorted(set(self._spans)):
            found = 0
            for piece in _pieces(partial(_fill, self.name, fd), start, start + size):
                found = zlib.crc32(piece, found)
            if found != said:
                return False
        return True

    def _hash(self, fd: int) -> str:
        digest = hashlib.sha256()
        for piece in _pieces(partial(_fill, self.name, fd), 0, self.size):
            digest.update(piece)
        return digest.hexdigest()


def open_original(path: Path, name: str) -> Original:
    """A file to be read piece by piece.

    Raises:
        SourceError: it is absent, no regular file, or cannot be read.
    """
    with opened(path, name) as fd:
        found = Original(path, name, _settled(fd), _keep(fd))
    return _note(found)


def read_whole(path: Path, name: str, limit: int) -> bytes:
    """The bytes of a small file that decides what is merged, one more than `limit` at most.

    Errors as for `open_original`.
    """
    with opened(path, name) as fd:
        identity = _settled(fd)
        found = _read(fd, limit)
        if not Identity.of(os.fstat(fd)).same_bytes(identity):
            raise changed(name, "was changed")
    _note(Original(path, name, identity, digest=hashlib.sha256(found).hexdigest()))
    return found


def read_text(path: Path, name: str, limit: int) -> bytes:
    """The same of a file that only says something, and may change."""
    with opened(path, name) as fd:
        return _read(fd, limit)


def _read(fd: int, limit: int) -> bytes:
    buffer, most = bytearray(), os.fstat(fd).st_size + 1  # pread takes memory for all that it is asked for
    while len(buffer) <= limit:
        size = min(limit + 1 - len(buffer), max(most - len(buffer), BLOCK))
        if not (piece := os.pread(fd, size, len(buffer))):
            break
        buffer += piece
    return bytes(buffer)


@contextmanager
def noted() -> Iterator[dict[Path, Original]]:
    """Collects every file that is read within, by its path."""
    found: dict[Path, Original] = {}
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)
    if (outer := _noted.get()) is not None:
        for each in found.values():
            _join(outer, each)


@contextmanager
def one_state(known: Mapping[Path, Original] = MappingProxyType({})) -> Iterator[dict[Path, Original]]:
    """For an answer that looks at files more than once: those known, and all read within, stay as they were.

    Collects them as `noted` does.

    A descriptor that was kept still reads what was replaced, so each is also looked for where it lay.

    Raises:
        ChangedError: one is not there any more, or another; also in place of what was made of that.
    """
    with noted() as found:
        found |= known
        try:
            yield found
        except LoramergeError:
            confirm_places(found)
            raise
        confirm_places(found)


@contextmanager
def unchanged(*known: Mapping[Path, Original]) -> Iterator[None]:
    """For an answer that is made of several reads of files that are open: all are of one state.

    Raises:
        ChangedError: they are not; also in place of what was made of that.
    """
    try:
        yield
    except LoramergeError:
        _confirm(known)
        raise
    _confirm(known)


def _confirm(known: Iterable[Mapping[Path, Original]]) -> None:
    for originals in known:
        for each in originals.values():
            each.confirm()


def confirm_places(found: Mapping[Path, Original]) -> None:
    """Raises ChangedError: one is not there any more, or another."""
    for each in found.values():
        each.confirm_place()


def _note(found: Original) -> Original:
    if (seen := _noted.get()) is not None:
        _join(seen, found)
    return found


def _join(seen: dict[Path, Original], found: Original) -> None:
    """Of a file that is opened twice, as a config is, the first stands for both."""
    first = seen.setdefault(found.path, found)
    if first is found:
        return
    if not first.identity.same_bytes(found.identity):
        raise changed(found.name, "was changed")
    first.take(found)
    if first.identity.changed != found.identity.changed:
        first.confirm()


@contextmanager
def opened(path: Path, name: str) -> Iterator[int]:
    """A descriptor of a regular file. Nothing else is even opened: a pipe would wait, a device may act.

    Raises:
        SourceError: it is absent, something else, or cannot be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise _no_file(name)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise SourceError(f"{_shown(name)} does not exist.{nearby(path) or ' Check the path.'}") from None
    except (OSError, ValueError) as error:
        raise unreadable(name, error) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # it became something else in between
            raise _no_file(name)
        note_read(path)
        with _same(fd, name):
            yield fd
    finally:
        os.close(fd)


@contextmanager
def _same(fd: int, name: str) -> Iterator[int]:
    try:
        yield fd
    except OSError as error:
        raise unreadable(name, error) from error


def _settled(fd: int) -> Identity:
    """The identity of a file, once a later write must change it.

    The clock of file times ticks every few milliseconds: of two writes within one tick it tells nothing.
    """
    now = Identity.of(os.fstat(fd))
    for _ in range(TICK):
        newest = max(now.modified, now.changed)
        if not 0 <= newest - time.clock_gettime_ns(COARSE) < TICK * 10**6:
            break
        time.sleep(0.001)
        now = Identity.of(os.fstat(fd))
    return now


def _pieces(read_into: Callable[[memoryview, int], None], start: int, stop: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(CHUNK, stop - start)))
    for at in range(start, stop, CHUNK):
        piece = buffer[: min(CHUNK, stop - at)]
        read_into(piece, at)
        yield piece


def _fill(name: str, fd: int, buffer: memoryview, start: int) -> None:
    done = 0
    while done < len(buffer):  # one call reads 2 GiB at most
        count = os.preadv(fd, [buffer[done:]], start + done)
        if count == 0:
            raise changed(name, "became shorter")
        done += count


# A token for each descriptor that may be kept; lists need no lock, which a finalizer must not wait for.
_room = [None] * min(MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)


def _keep(fd: int) -> int | None:
    """A descriptor of its own for the same open file, while there is room for one more."""
    try:
        _room.pop()
    except IndexError:
        return None
    try:
        return os.dup(fd)
    except OSError:
        _room.append(None)
        return None


def _release(fd: int) -> None:
    os.close(fd)
    _room.append(None)


def _state(path: Path) -> Identity | None:
    try:
        return Identity.of(os.stat(path))
    except OSError:
        return None


def _no_file(name: str) -> SourceError:
    return SourceError(f"{_shown(name)} is not a file. Name a file.")


def changed(name: str, how: str) -> ChangedError:
    """A file is no longer what was opened."""
    return ChangedError(f"{_shown(name)} {how} while it was read. Wait until it is complete, then run again.")


def _shown(name: str) -> str:
    return printable(name, limit=1000)
