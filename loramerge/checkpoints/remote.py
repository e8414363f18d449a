"""A model of the Hub on this disk: its weights, and the small files beside them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from loramerge.checkpoints.checkpoint import CONFIG, INDEX, STEMS, Checkpoint, Model, opened
from loramerge.errors import SourceError
from loramerge.formats.files.json import read_object
from loramerge.formats.files.safetensors import File, open_elsewhere
from loramerge.hub.choice import below
from loramerge.hub.client import ask
from loramerge.hub.fetch import download, offline
from loramerge.hub.names import HubName
from loramerge.hub.ranges import Ranged

BESIDE = (
    ".json",
    ".txt",
    ".model",
    ".jinja",
    ".py",
    ".md",
    ".tiktoken",
    ".spm",
)  # never pickles, never images


def fetched(name: HubName) -> Checkpoint:
    """The model, downloaded if the cache does not have it.

    Raises:
        SourceError: missing, gated, not to be reached; or no model.
    """
    listing = ask(name)
    wanted = [name.path] if name.is_file else _chosen(name.path, listing.files)
    if not any(file.endswith(".safetensors") for file in wanted) or not set(wanted) <= listing.files:
        raise SourceError(f"{name} has no model in .safetensors.")
    root = download(name, listing.commit, wanted)
    return replace(opened(root / name.path, name.shown), hub=name.place, commit=listing.commit)


def _chosen(base: str, files: Iterable[str]) -> list[str]:
    """The files of a folder that are the model: one set of weights in each folder, and what is small."""
    inside = [file for file in files if not base or file.startswith(f"{base}/")]
    folders: dict[str, set[str]] = {}
    for file in inside:
        folder, _, last = file.rpartition("/")
        folders.setdefault(folder, set()).add(last)
    if below(base, "model_index.json") not in inside:
        folders = {base: folders.get(base, set())}
    found: list[str] = []
    for folder, names in sorted(folders.items()):
        kept = [last for last in sorted(names) if last.endswith(BESIDE) or last in _weights(names)]
        found += [below(folder, last) for last in kept]
    return found


def _weights(names: set[str]) -> set[str]:
    """The weights without their other variants."""
    for stem in STEMS:
        if f"{stem}{INDEX}" in names:
            return {last for last in names if last.startswith(f"{stem}-") and last.endswith(".safetensors")}
        if f"{stem}.safetensors" in names:
            return {f"{stem}.safetensors"}
    return {last for last in names if last.endswith(".safetensors")}


def peeked(name: HubName) -> Checkpoint:
    """The model with only its small files downloaded. A tensor stays on the Hub until it is read.

    Raises:
        SourceError: missing, gated, not to be reached; or no model.
    """
    if offline():
        return fetched(name)
    listing = ask(name)
    wanted = [name.path] if name.is_file else _chosen(name.path, listing.files)
    weights = [file for file in wanted if file.endswith(".safetensors")]
    if not weights or not set(wanted) <= listing.files:
        raise SourceError(f"{name} has no model in .safetensors.")
    beside = [file for file in wanted if os.path.basename(file) == CONFIG]
    root = download(name, listing.commit, beside) if beside else Path(os.devnull)
    folders: dict[str, dict[str, File]] = {}
    for file in weights:
        ranged, (folder, last) = Ranged(name, listing.commit, file), os.path.split(file)
        shard = open_elsewhere(f"{name.shown}/{last}", root / file, ranged.open(), ranged.read)
        folders.setdefault(folder, {})[last] = shard
    models = {
        _called(folder, name): Model(folder, _config(root / folder, name), shards)
        for folder, shards in folders.items()
    }
    return Checkpoint(name.shown, root, name.is_file, models, hub=name.place, commit=listing.commit)


def _called(folder: str, name: HubName) -> str:
    """The component that a folder holds."""
    return "file" if name.is_file else folder.removeprefix(name.path).strip("/") or "model"


def _config(folder: Path, name: HubName) -> Mapping[str, Any]:
    found = folder / CONFIG
    return read_object(found, f"{CONFIG} of {name.shown}") if found.is_file() else {}
