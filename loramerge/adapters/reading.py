"""What is read for one request, so that no output of it takes the place of something that was read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_files: ContextVar[dict[str, bool] | None] = ContextVar("files", default=None)  # path -> it was written here


@contextmanager
def reading() -> Iterator[None]:
    """The work for one request: within it is known what was read, so that no output takes its place."""
    if _files.get() is not None:
        yield
        return
    token = _files.set({})
    try:
        yield
    finally:
        _files.reset(token)


def files_read() -> list[Path]:
    """The files that were opened within `reading`, but for what it wrote itself."""
    from pathlib import Path  # --help reads none

    read = _files.get() or {}
    made = [path for path, is_made in read.items() if is_made]
    return [Path(path) for path in read if not any(f"{path}/".startswith(f"{each}/") for each in made)]


def note_read(path: Path) -> None:
    """This file was opened."""
    if (read := _files.get()) is not None:
        read.setdefault(os.fspath(path), False)


def made(out: Path) -> None:
    """What lies there now was written within `reading`, and may be read back."""
    if (read := _files.get()) is not None:
        read[os.fspath(out)] = True
