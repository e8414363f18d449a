"""Every way a command can fail, as one sentence on stderr and one exit code."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback

import click

from loramerge.errors import LoramergeError

BUG, INTERRUPTED = 70, 130


def exit_code(error: BaseException) -> int:
    """Say what went wrong; the exit code of the process."""
    match error:
        case click.exceptions.Exit():
            return error.exit_code
        case SystemExit():
            return error.code if isinstance(error.code, int) else 1
        case click.Abort() | KeyboardInterrupt():
            return _say("Interrupted: the output is as it was before.", INTERRUPTED)
        case BrokenPipeError():  # the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        case click.ClickException():
            error.show()
            return error.exit_code
        case LoramergeError():
            return _say(f"Error: {error}", error.exit_code)
        case MemoryError():
            return _say("Error: there is not enough memory for this merge.", 1)
    return _say(_bug(error), BUG)


def _bug(error: BaseException) -> str:
    trace = "".join(traceback.format_exception(error))
    if os.environ.get("LORAMERGE_DEBUG"):
        print(trace, file=sys.stderr)
    with tempfile.NamedTemporaryFile(
        "w", prefix="loramerge-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        log.write(trace)
    return f"Error: this is a bug in loramerge ({type(error).__name__}); please report it with {log.name}"


def _say(sentence: str, code: int) -> int:
    click.echo(sentence, err=True)
    return code
