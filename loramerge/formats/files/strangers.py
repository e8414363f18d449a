"""Files that are no adapter though they bear its name."""

from __future__ import annotations

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
