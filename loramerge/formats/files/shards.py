"""Weights in several safetensors files, as PEFT and transformers save large ones: an index, and shards."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from loramerge.adapters.adapter import Tensor
from loramerge.adapters.late import late
from loramerge.adapters.presence import is_file
from loramerge.errors import SourceError, printable
from loramerge.formats.files.json import read_object
from loramerge.formats.files.safetensors import File, open_file

INDEX = "adapter_model.safetensors.index.json"
SHARD = late(r"(?P<stem>.*adapter_model)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors", re.DOTALL)
MOST = 1000  # shards; an adapter has a few


def shards(folder: Path, name: str) -> list[str]:
    """The names of the shards in a folder, all of them; none if it holds no shard.

    Raises:
        SourceError: the index is malformed, or a shard is missing.
    """
    if is_file(folder / INDEX):
        table = read_object(folder / INDEX, f"{INDEX} of {name}").get("weight_map")
        names = set(table.values()) if isinstance(table, dict) and _texts(table.values()) else set()
        if not names:
            raise SourceError(f"{INDEX} of {printable(name)} has no weight_map of tensors to shards.")
        listed = sorted(names)
        _check_index(listed, name)
    else:
        listed = _numbered(folder, name)
    if len(listed) > MOST:
        raise SourceError(f"{printable(name)} has {len(listed)} shards, and {MOST} is the limit.")
    for each in listed:
        if not is_file(folder / each):
            raise SourceError(
                f"{printable(name)} lacks the shard {printable(each)}: the download is incomplete."
            )
    return listed


def _check_index(listed: list[str], name: str) -> None:
    """Raises SourceError: it names a file that is not a shard of this folder, or leaves one out."""
    for each in listed:
        if not each.endswith(".safetensors") or Path(each).name != each:
            raise SourceError(
                f"{INDEX} of {printable(name)} names {printable(each)}, no shard of this folder."
            )
        shard = SHARD.fullmatch(each)
        if shard and len(listed) < int(shard["count"]):
            raise SourceError(
                f"{INDEX} of {printable(name)} names {len(listed)} of {int(shard['count'])} shards: "
                "the rest would be left out. Save the adapter again, or delete the index to read all of them."
            )


def _texts(values: Iterable[object]) -> bool:
    return all(isinstance(each, str) for each in values)


def _numbered(folder: Path, name: str) -> list[str]:
    """Shards without an index: their names say how many there are."""
    try:
        found = {each: shard for each in sorted(os.listdir(folder)) if (shard := SHARD.fullmatch(each))}
    except OSError:
        return []
    sets = {(shard["stem"], shard["count"]) for shard in found.values()}
    if len(sets) > 1:
        some = ", ".join(printable(each, 60) for each in list(found)[:4])
        raise SourceError(f"{printable(name)} holds shards of several adapters ({some}): keep those of one.")
    return [
        f"{stem}-{number:05}-of-{count}.safetensors"
        for stem, count in sets
        for number in range(1, min(int(count), MOST + 1) + 1)
    ]


def open_shards(folder: Path, name: str) -> File | None:
    """The tensors of all shards as one file; None if the folder holds no shard. Only headers are read.

    Raises:
        SourceError: a shard is missing or malformed, a tensor is in two, or not where the index says.
    """
    names = shards(folder, name)
    if not names:
        return None
    files = [open_file(folder / each, f"{name}/{each}") for each in names]
    tensors: dict[str, Tensor] = {}
    for file in files:
        for key, tensor in file.tensors.items():
            if key in tensors:
                raise SourceError(f"{printable(key)} is in two shards of {printable(name)}: it is damaged.")
            tensors[key] = tensor
    _check_listed(folder, name, tensors)
    return replace(files[0], name=name, tensors=tensors, others=tuple(file.path for file in files[1:]))


def _check_listed(folder: Path, name: str, tensors: dict[str, Tensor]) -> None:
    if not is_file(folder / INDEX):
        return
    table = read_object(folder / INDEX, f"{INDEX} of {name}")["weight_map"]
    if lacking := sorted(table.keys() - tensors.keys()):
        raise SourceError(f"No shard of {printable(name)} holds {printable(lacking[0])}: it is damaged.")


def check_alone(path: Path, name: str) -> None:
    """Raises SourceError: a file is one shard of several, which would be a part of the adapter."""
    found = SHARD.fullmatch(path.name) if "-of-" in path.name else None
    if found is not None and int(found["count"]) > 1:
        raise SourceError(
            f"{printable(name)} is one shard of {int(found['count'])}, a part of the adapter: name its "
            "folder, which is read as a whole."
        )
