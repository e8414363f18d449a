"""Output that appears whole or not at all, whenever the process may be killed. POSIX only.

All work happens in a temporary beside OUT, which is flushed to the disk and then renamed:

    .OUT.loramerge-lock    held while one process writes OUT
    .OUT.loramerge-new     the work; worthless after a crash
    .OUT.loramerge-old     the former folder, between the two renames that replace a folder

The kernel replaces a file, an absent or an empty folder in one step. A folder with content needs
two, so a crash exactly between them leaves OUT absent; the next run that reads or writes OUT puts it back.
Signals that can be held are held from the first rename until the lock is gone.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loramerge.adapters.reading import made
from loramerge.errors import OutputError, printable, say
from loramerge.formats.files.destination import check_output, real_path
from loramerge.formats.files.signals import Signals

__all__ = ["check_output", "locked", "new_file", "new_folder", "writing"]

OLD, NEW = ".loramerge-old", ".loramerge-new"
Confirm = Callable[[], object]
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

PLACED: list[Path] = []  # what was put in its place in this process; an interrupt tells of it


@contextmanager
def new_file(out: Path, overwrite: bool = False, confirm: Confirm = lambda: None) -> Iterator[Path]:
    """Yield a path to create and fill; it becomes OUT when the block ends, or leaves no trace.

    A symlink OUT is followed. `confirm` is called last of all, and may raise.

    Raises:
        OutputError: `check_output` refuses OUT, another process writes it, or the disk refuses.
    """
    with _work(out, overwrite, folder=False) as (new, signals):
        yield new
        with writing(out):
            _flush(new)
        confirm()
        signals.hold()
        with writing(out):
            os.replace(new, real_path(out))
            PLACED.append(out)
            made(out)
            _flush(new.parent)


@contextmanager
def new_folder(
    out: Path, overwrite: bool = False, confirm: Confirm = lambda: None, own: Collection[str] = ()
) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes OUT when the block ends, or leaves no trace.

    Files in folders below it must be flushed by those who write them. Symlinks, `confirm` and errors are
    as for `new_file`; `own` as for `check_output`.
    """
    with _work(out, overwrite, folder=True, own=own) as (new, signals):
        with writing(out):
            os.mkdir(new)
        yield new
        with writing(out):
            for name in os.listdir(new):
                _flush(new / name)
            _flush(new)
        confirm()
        signals.hold()
        with writing(out):
            _replace_folder(new, real_path(out))
            made(out)


@contextmanager
def locked(out: Path) -> Iterator[Signals]:
    """Keep every other process, and thread, from writing OUT.

    Yields what can hold signals; those that are still held at the end act when the lock is gone.

    Raises:
        OutputError: another one is writing it.
    """
    with Signals() as signals:
        signals.hold()
        with writing(out):
            lock = _beside(out, "lock")
            fd = _lock(lock, out)
        try:
            signals.release()
            yield signals
        finally:
            signals.hold()
            try:
                with _removing(lock, out), suppress(FileNotFoundError):
                    os.unlink(lock)  # before the lock is let go: see _lock
            finally:
                os.close(fd)


@contextmanager
def writing(out: Path | str) -> Iterator[None]:
    """Turn what the system refuses into an OutputError that names OUT."""
    try:
        yield
    except OSError as error:
        name = printable(_meant(out), limit=1000)
        if error.errno in _FULL:
            raise OutputError(
                f"There is no space left while writing {name}. Free some, or choose another {say('out')}."
            ) from error
        raise OutputError(
            f"{name} cannot be written: {error.strerror}. Choose another {say('out')}."
        ) from error


def _meant(path: Path | str) -> Path | str:
    """What the user knows of a path: OUT, where it lies in the work that will be OUT."""
    new = [part for part in Path(path).parts if part.startswith(".") and part.endswith(NEW)]
    return str(path).replace(new[-1], new[-1][1:].removesuffix(NEW)) if new else path


@contextmanager
def _work(
    out: Path, overwrite: bool, folder: bool, own: Collection[str] = ()
) -> Iterator[tuple[Path, Signals]]:
    check_output(out, overwrite, folder, own)
    new = _beside(out, "new")
    with locked(out) as signals:
        signals.hold()
        with writing(out):
            _recover(out)
        signals.release()
        check_output(out, overwrite, folder, own)  # again: recovery may have put the former OUT back
        try:
            with _filling(out):
                yield new, signals
        finally:
            signals.hold()
            _remove(new, out)


@contextmanager
def _filling(out: Path) -> Iterator[None]:
    """If the disk gets full, the message says so, whatever was being written."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        with writing(out):
            raise


def put_back(path: Path) -> None:
    """Put a folder back that a crash left aside, between the two renames of an overwrite, if one did.

    Raises:
        OutputError: another process is between them now, or the system refuses.
    """
    if not _possible(path):
        return
    for place in (path, path.parent):
        if not os.path.lexists(place) and os.path.lexists(_beside(place, "old")):
            with locked(place) as signals, writing(place):
                signals.hold()
                _recover(place)


def _possible(path: Path) -> bool:
    """Whether a file can have such a name at all."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    except ValueError:  # a zero byte, or half a character
        return False
    return True


def put_back_members(folder: Path) -> None:
    """The same for everything that lies in a folder, so that none of its adapters is missed in silence."""
    with suppress(OSError):  # who lists it says so
        for name in os.listdir(folder):
            if name.startswith(".") and name.endswith(OLD):
                put_back(folder / name[1 : -len(OLD)])


def _recover(out: Path) -> None:
    """Undo what a crash has left beside OUT."""
    _remove(_beside(out, "new"), out)
    old, real = _beside(out, "old"), real_path(out)
    if os.path.lexists(old) and not _has_content(real):
        os.rename(old, real)
        _flush(real.parent)
    _remove(old, out)


def _replace_folder(new: Path, out: Path) -> None:
    old = _beside(out, "old")
    if _has_content(out):
        os.rename(out, old)
    try:
        os.rename(new, out)
        PLACED.append(out)
    except OSError:
        if old.exists():
            os.rename(old, out)
        raise
    _flush(out.parent)
    _remove(old, out)


def _has_content(path: Path) -> bool:
    return os.path.lexists(path) and (not path.is_dir() or bool(os.listdir(path)))


def _lock(lock: Path, out: Path) -> int:
    while True:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The former holder may have unlinked the file between our open and our flock; then
            # somebody else can lock a new file of that name, and ours protects nothing.
            if _is_same(fd, lock):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise OutputError(
                f"Another loramerge is writing to {printable(out, limit=1000)}."
                f" Wait for it to end, or choose another {say('out')}."
            ) from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _is_same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network disks cannot flush a folder
            raise
    finally:
        os.close(fd)


def _remove(path: Path, out: Path) -> None:
    with _removing(path, out):
        if path.is_dir() and not path.is_symlink():
            import shutil  # it loads compressors

            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)


@contextmanager
def _removing(path: Path, out: Path) -> Iterator[None]:
    """What stays beside OUT is no reason to say that OUT was not written."""
    try:
        yield
    except OSError as error:
        placed = not {out, real_path(out)}.isdisjoint(PLACED)
        head = f"{printable(out, limit=1000)} is complete, but " if placed else ""
        raise OutputError(
            f"{head}{printable(path, limit=1000)} cannot be removed: {error.strerror}. Remove it by hand."
        ) from error


def _beside(out: Path, role: str) -> Path:
    real = real_path(out)
    return real.with_name(f".{real.name}.loramerge-{role}")
