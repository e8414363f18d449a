"""Files that are no adapter though they bear its name."""

from __future__ import annotations

from loramerge.errors import SourceError, printable

POINTER = b"version https://git-lfs"  # how a pointer of Git LFS begins
PAGES = (b"<!doctype", b"<html", b"<?xml")  # and a web page
HEAD = 32  # bytes that tell
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd")  # archives
OTHERS = {
    b"\x89HDF": "a file of Keras (HDF5)",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"%PDF": "a PDF",
}
_TEXT = frozenset(b"\t\n\r") | frozenset(range(0x20, 0x7F))


def check_head(head: bytes, name: str) -> None:
    """What the first bytes of a file give away.

    Raises:
        SourceError: it is a pointer of Git LFS, a web page, an archive, or of another kind that is known.
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
    if head.startswith(PACKED):
        raise SourceError(f"{shown} is an archive: unpack it, and name the adapter that is in it.")
    for start, what in OTHERS.items():
        if head.startswith(start):
            raise SourceError(f"{shown} is {what}, not an adapter that is read.")


def check_binary(head: bytes, name: str) -> None:
    """A file of tensors begins with numbers; a pointer, an error or a list begins with letters.

    Raises:
        SourceError: it is a text.
    """
    if len(head) >= 8 and _TEXT.issuperset(head):
        raise SourceError(
            f"{printable(name, 1000)} is a text, not a file of tensors; it begins with "
            f"{printable(head.decode('ascii').strip(), 40)}: what was downloaded may be a pointer or "
            "a message. Download the file itself."
        )
