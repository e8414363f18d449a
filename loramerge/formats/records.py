"""Where the record of a merge lies: in loramerge.json, or in the header of the one file that was written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.errors import SourceError, printable
from loramerge.formats.files.atomic import put_back
from loramerge.formats.files.destination import ADAPTER_FILES, RECORD
from loramerge.formats.files.json import parse_object, read_object
from loramerge.formats.files.safetensors import open_file
from loramerge.formats.masks import FOLDER
from loramerge.formats.output import APART, is_bare
from loramerge.formats.peft.alpha import OURS


def read_record(path: Path, shown: str | None = None) -> dict[str, Any]:
    """The record in a loramerge.json, in the folder that holds one, or in a .safetensors.

    `shown` is its name for messages, where that is not its path.

    Raises:
        SourceError: there is none, or it cannot be read.
    """
    name = str(path) if shown is None else shown
    put_back(path)
    if os.path.isdir(path) and not os.path.exists(path / RECORD):
        raise SourceError(f"{printable(name)} has no {RECORD}: it was not written by loramerge combine.")
    if not is_bare(path):
        return (
            read_object(path / RECORD, f"{name}/{RECORD}") if os.path.isdir(path) else read_object(path, name)
        )
    metadata = open_file(path, name).metadata
    if OURS not in metadata:
        raise SourceError(
            f"{printable(name)} holds no record of a merge: it was not written by loramerge combine."
        )
    return parse_object(metadata[OURS], f"the record in {name}")


def find_record(path: Path) -> dict[str, Any] | None:
    """The same; None if nothing of a merge is recorded there.

    Raises:
        SourceError: the record cannot be read.
    """
    if os.path.isdir(path):
        return read_record(path) if os.path.isfile(path / RECORD) else None
    return read_record(path) if is_bare(path) and OURS in open_file(path).metadata else None


LEFT = {  # what may lie beside an adapter, and what is lost without it
    RECORD: "how it was merged, for replay",
    APART: "tensors of several sources kept apart",
    FOLDER: "the masks of its tasks, for restore",
}


def left_behind(adapter: Adapter, rewritten: bool = False) -> Iterator[str]:
    """Notes on what a conversion leaves behind.

    `rewritten`: so is the header of its file, which may hold the record of a merge.
    """
    if rewritten and adapter.bare and '"method"' in adapter.metadata.get(OURS, ""):
        yield "the record in its header (how it was merged, for replay) is left behind"
    if not adapter.provenance.files:
        return
    weights = adapter.provenance.files[0]
    if not adapter.bare or weights.name in ADAPTER_FILES:
        for name, meaning in LEFT.items():
            if os.path.exists(weights.parent / name):
                yield f"{name} ({meaning}) is left behind"


def adapter_beside(path: Path) -> Path | None:
    """The adapter that a record belongs to: the file itself, or the folder it lies in."""
    place = path if is_bare(path) or os.path.isdir(path) else path.parent
    kept = place if is_bare(place) else place / RECORD
    return place if os.path.isfile(kept) else None
