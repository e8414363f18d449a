"""Files that are no adapter though they bear its name, and paths that were mistyped."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from loramerge.errors import SourceError, printable

POINTER = b"version https://git-lfs"  # how a pointer of Git LFS begins
PAGES = (b"<!doctype", b"<html", b"<?xml")  # and a web page
HEAD = 32  # bytes that tell


def check_head(head: bytes, name: str) -> None:
    """What the first bytes of a file give away.

    Raises:
        SourceError: it is a pointer of Git LFS, or a web page.
    """
    shown = printable(name, 1000)
    if head.startswith(POINTER):
        raise SourceError(
            f"{shown} is a pointer of Git LFS, not the file itself: run `git lfs pull` in its repository, or "
            "name the repository of the Hub, which is downloaded."
        )
    if head.lstrip().lower().startswith(PAGES):
        raise SourceError(
            f"{shown} is a web page, not the file itself: a login, or the page of the file, was downloaded. "
            "Take the link that begins the download."
        )


def nearby(path: Path) -> str:
    """What is there and has a name like that of a path which is not, as the end of a sentence.

    >>> nearby(Path("fixtures/a.safetensor"))
    ' Did you mean fixtures/a.safetensors?'
    """
    there = path.parent
    while not there.is_dir() and there != there.parent:  # the first part that is not there
        path, there = there, there.parent
    try:
        names = os.listdir(there)
    except OSError:
        return ""
    names = [name for name in names if not name.startswith(".")]
    found = difflib.get_close_matches(path.name, names, n=2, cutoff=0.75)
    return f" Did you mean {' or '.join(printable(there / name, 1000) for name in found)}?" if found else ""
