"""Where the record of a merge lies: in loramerge.json, or in the header of the one file that was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loramerge.errors import SourceError, printable
from loramerge.formats.alpha import OURS
from loramerge.formats.json import parse_object, read_object
from loramerge.formats.output import RECORD, is_bare
from loramerge.formats.safetensors import open_file


def read_record(path: Path) -> dict[str, Any]:
    """The record in a loramerge.json, in the folder that holds one, or in a .safetensors.

    Raises:
        SourceError: there is none, or it cannot be read.
    """
    if not is_bare(path):
        file = path / RECORD if path.is_dir() else path
        return read_object(file, str(file))
    metadata = open_file(path).metadata
    if OURS not in metadata:
        raise SourceError(
            f"{printable(path)} holds no record of a merge: it was not written by loramerge combine."
        )
    return parse_object(metadata[OURS], f"the record in {path}")


def find_record(path: Path) -> dict[str, Any] | None:
    """The same; None if nothing of a merge is recorded there.

    Raises:
        SourceError: the record cannot be read.
    """
    if path.is_dir():
        return read_record(path) if (path / RECORD).is_file() else None
    return read_record(path) if is_bare(path) and OURS in open_file(path).metadata else None


def adapter_beside(path: Path) -> Path | None:
    """The adapter that a record belongs to: the file itself, or the folder it lies in."""
    place = path if is_bare(path) or path.is_dir() else path.parent
    kept = place if is_bare(place) else place / RECORD
    return place if kept.is_file() else None
