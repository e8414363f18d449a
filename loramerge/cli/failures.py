"""Every way a command can fail, as one sentence on stderr and one exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from loramerge.errors import LoramergeError, printable

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

BUG, INTERRUPTED = 70, 130
LONG = 5.0  # seconds after which a clean end is not waited for
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # by the system, not by a mistake of ours


_ended: list[int] = []  # the exit code that a signal asked for, as what it raised may come as another error


class Ended(BaseException):
    """The system asked this process to end."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Clean up after SIGTERM and SIGHUP as after Ctrl-C; what `nohup` ignores stays ignored."""
    if not _main():
        yield
        return
    _ended.clear()
    ours = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_DFL]
    for each in ours:
        signal.signal(each, _end)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)


@contextmanager
def interrupted_once() -> Iterator[None]:
    """An interrupt ends the work once; more of them may not disturb how what is half done is taken away.

    Who presses on for seconds, because a disk hangs, gets out as well.
    """
    _placed().clear()
    if (before := signal.getsignal(signal.SIGINT)) is not signal.default_int_handler or not _main():
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _ended.clear()


def _main() -> bool:
    """Signals are for this thread alone."""
    return threading.current_thread() is threading.main_thread()


def _interrupt(*_: object) -> None:
    _not_again(INTERRUPTED)
    raise KeyboardInterrupt


def _end(number: int, _: FrameType | None) -> None:
    _not_again(128 + number)
    raise Ended(number)


def _not_again(code: int) -> None:
    """One signal is enough; a second one, of whichever kind, must not disturb the cleaning."""
    _ended.append(code)
    began = time.monotonic()

    def again(*_: object) -> None:
        if time.monotonic() - began > LONG:
            os._exit(code)

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) in (_interrupt, _end):
            signal.signal(each, again)


def _placed() -> list[Path]:
    """What this command has put in its place; nothing, if it never came to files."""
    atomic = sys.modules.get("loramerge.formats.files.atomic")
    return [] if atomic is None else atomic.PLACED


def _left() -> str:
    return f"{printable(_placed()[-1].name)} was complete by then" if _placed() else "no output was changed"


def exit_code(error: BaseException) -> int:
    """Say what went wrong; the exit code of the process."""
    if _ended and not isinstance(error, Ended | KeyboardInterrupt | click.Abort):
        # Python 3.11 turns what is raised while a class is made into a RuntimeError, and others do likewise.
        error = Ended(_ended[0] - 128) if _ended[0] != INTERRUPTED else KeyboardInterrupt()
    match error:
        case click.exceptions.Exit():
            return error.exit_code
        case SystemExit():
            return error.code if isinstance(error.code, int) else 1
        case click.Abort() | KeyboardInterrupt():
            return _say(f"Interrupted: {_left()}.", INTERRUPTED)
        case Ended():
            return _say(f"Ended by {error}: {_left()}.", 128 + error.number)
        case BrokenPipeError():  # the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        case click.ClickException():
            error.show()
            return error.exit_code
        case LoramergeError():
            return _say(f"Error: {error}", error.exit_code)
        case OSError() if error.errno in REFUSED:
            return _say(f"Error: the system refuses to go on: {error.strerror}.", 1)
        case FileNotFoundError() if _gone():
            return _say("Error: the folder in which this runs does not exist any more: change to another.", 1)
        case MemoryError():
            return _say("Error: there is not enough memory for this merge.", 1)
    return _say(_bug(error), BUG)


def _gone() -> bool:
    """Whether the working folder was removed, so that no path in it has a name."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _bug(error: BaseException) -> str:
    import tempfile
    import traceback

    trace = "".join(traceback.format_exception(error))
    if os.environ.get("LORAMERGE_DEBUG"):
        print(trace, file=sys.stderr)
    what = f"Error: this is a bug in loramerge ({type(error).__name__}); please report it"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="loramerge-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as log:
            log.write(trace)
    except OSError:
        return f"{what} with what LORAMERGE_DEBUG=1 prints"
    return f"{what} with {log.name}"


def _say(sentence: str, code: int) -> int:
    click.echo(sentence, err=True)
    return code
