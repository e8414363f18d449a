"""What a folder or a file holds, before anything is made of it: settings, tensors, names of other files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loramerge.adapter import Tensor
from loramerge.errors import LoramergeError, SourceError, printable
from loramerge.formats.alpha import DIFFUSERS
from loramerge.formats.json import parse_object, read_object
from loramerge.formats.names import PICKLED, WEIGHTS
from loramerge.formats.peft import CONFIG, open_weights

MLX = "adapters.safetensors"  # in a folder that mlx-lm saved


@dataclass(frozen=True, eq=False)
class Raw:
    """The files of an adapter as they are, of whatever kind it is.

    Args:
        place: the folder, or the file.   folder: it has a config of its own.
        config: adapter_config.json; of a bare file, what diffusers keeps in the header.
        tensors: under their own names.   weights: name of the file that holds them.
        beside: names of the files in its folder.
    """

    place: Path
    folder: bool
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    weights: str
    beside: frozenset[str] = field(default_factory=frozenset)


def look(place: Path, name: str, allow_pickle: bool = False) -> Raw:
    """The files at a place. Only headers are read, and nothing is refused for what it means.

    Raises:
        SourceError: there is no adapter, or a file cannot be read.
        IncompatibleError: a pickle, and these are not allowed.
    """
    if not os.path.isdir(place):
        file = open_weights(place, name, allow_pickle)
        return Raw(place, False, _of_header(file.metadata, name), file.tensors, place.name)
    names = _listed(place, name)
    weights = _weights(names, name)
    file = open_weights(place / weights, f"{name}/{weights}", allow_pickle)
    folder = CONFIG in names
    said = read_object(place / CONFIG, f"{CONFIG} of {name}") if folder else _of_header(file.metadata, name)
    return Raw(place if folder else place / weights, folder, said, file.tensors, weights, frozenset(names))


def _listed(place: Path, name: str) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(place) if entry.is_file())
    except OSError as error:
        raise SourceError(f"{printable(name)} cannot be read: {error.strerror}. Check its rights.") from error


def _weights(names: list[str], name: str) -> str:
    """The file of weights among these."""
    known = [each for each in (WEIGHTS, PICKLED, MLX) if each in names]
    found = known or [each for each in names if each.endswith(".safetensors")]
    if not found:
        raise SourceError(f"{printable(name)} holds no file of weights: name the adapter's folder or file.")
    if len(found) > 1 and not known:
        some = ", ".join(printable(each, 60) for each in found[:3])
        raise SourceError(f"{printable(name)} holds several files of weights ({some}): name one of them.")
    return found[0]


def _of_header(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """diffusers' settings, without the name of their component where they have one."""
    if DIFFUSERS not in metadata:
        return {}
    try:
        said = parse_object(metadata[DIFFUSERS], f"the {DIFFUSERS} of {name}")
    except LoramergeError:
        return {}  # who reads it says so; to others it is nothing
    prefixes = {key.rpartition(".")[0] for key in said if key.rpartition(".")[2] == "r"}
    if len(prefixes) != 1:
        return {}
    prefix = prefixes.pop()
    start = f"{prefix}." if prefix else ""
    return {key.removeprefix(start): value for key, value in said.items() if key.startswith(start)}
