"""A whole model on this disk: a folder of shards, a pipeline of several models, or one file. Headers only."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loramerge.adapters.adapter import Tensor
from loramerge.adapters.near import nearby
from loramerge.adapters.original import Original, one_state
from loramerge.adapters.presence import is_file, is_folder, names_in
from loramerge.adapters.whole import are_factors, no_model
from loramerge.errors import IncompatibleError, SourceError, printable
from loramerge.formats.bundles import refuse_bundle
from loramerge.formats.files.atomic import put_back
from loramerge.formats.files.json import read_object
from loramerge.formats.files.safetensors import File, open_file

CONFIG = "config.json"
PIPELINE = "model_index.json"  # of a folder of diffusers
STEMS = ("model", "diffusion_pytorch_model")  # of the files of weights, by transformers and diffusers
ADAPTER = "adapter_config.json"
INDEX = ".safetensors.index.json"
NUMBERED = re.compile(r".+-\d{5}-of-(\d{5})\.safetensors")  # of how many shards a file is one
PICKLES = (".bin", ".pt", ".pth", ".ckpt")

Key = tuple[str, str]  # (component, name of the tensor); one model alone has the component `model`


@dataclass(frozen=True, eq=False)
class Model:
    """One model: its config, and which file holds which tensor.

    Args:
        folder: below the root of the checkpoint; "" is the root itself.
        shards: file name -> its header.   index: the name of the index, if there is one.
    """

    folder: str
    config: Mapping[str, Any]
    shards: Mapping[str, File]
    index: str | None = None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Name -> tensor, in the order of the files."""
        for file in self.shards.values():
            yield from file.tensors.items()


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model, or a pipeline of several.

    Args:
        name: how messages call it.   root: the folder, or the file.   bare: it is one file.
        models: component -> model.
        hub: its place on the Hub, if it came from there.   commit: the 40 digits.
        originals: its files as they were when they were opened, by path.
    """

    name: str
    root: Path
    bare: bool
    models: Mapping[str, Model]
    hub: str | None = None
    commit: str | None = None
    originals: Mapping[Path, Original] = field(default_factory=dict, repr=False)
    tensors: Mapping[Key, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        found = {(part, key): t for part, model in self.models.items() for key, t in model.tensors()}
        object.__setattr__(self, "tensors", found)

    def config(self, component: str) -> Mapping[str, Any]:
        """The config of a component; empty where it has none."""
        return self.models[component].config if component in self.models else {}

    @property
    def files(self) -> tuple[Path, ...]:
        """Its files of weights."""
        return tuple(file.path for model in self.models.values() for file in model.shards.values())

    def confirm(self) -> None:
        """Raises SourceError: a file is no longer as it was when it was opened."""
        for original in self.originals.values():
            original.confirm()


def opened(path: Path, name: str) -> Checkpoint:
    """The model at a path. Errors as for `open_checkpoint`."""
    with one_state() as originals:  # its shards must be those of its index
        found = _opened(path, name)
    return replace(found, originals=originals)


def _opened(path: Path, name: str) -> Checkpoint:
    put_back(path)
    if not os.path.lexists(path):
        raise SourceError(f"{printable(name, 1000)} does not exist.{nearby(path) or ' Check the path.'}")
    if path.suffix == ".gguf" and not is_folder(path):
        raise _gguf(name)
    if not is_folder(path):
        return Checkpoint(name, path, True, {"file": _single(path, name)})
    refuse_bundle(path, name)
    if is_file(path / ADAPTER):
        raise IncompatibleError(no_model(name))
    if is_file(path / PIPELINE):
        return Checkpoint(name, path, False, _pipeline(path, name))
    return Checkpoint(name, path, False, {"model": _model(path, "", name)})


def _single(path: Path, name: str) -> Model:
    if path.suffix.lower() in PICKLES:
        raise _unsafe(name)
    file = _file(path, name)
    if are_factors(file.tensors):
        raise IncompatibleError(no_model(name))
    return Model("", {}, {path.name: file})


def _file(path: Path, name: str) -> File:
    try:
        return open_file(path, name)
    except IncompatibleError:  # as it says, a GGUF; its sentence is for adapters
        raise _gguf(name) from None


def _pipeline(path: Path, name: str) -> dict[str, Model]:
    """The models of a folder of diffusers: every subfolder that has weights."""
    listed = read_object(path / PIPELINE, f"{PIPELINE} of {name}")
    parts = [part for part in listed if not part.startswith("_") and is_folder(path / part)]
    for part in parts:
        if os.path.basename(part) != part or part in ("", os.curdir, os.pardir):  # OUT gets the same folders
            raise SourceError(
                f"{PIPELINE} of {printable(name, 1000)} names {printable(part)}, which is no folder in it."
            )
    found = {part: _model(path, part, name) for part in parts if _holds_weights(path / part, name)}
    if not found:
        raise SourceError(f"{printable(name, 1000)} has no folder with weights that its {PIPELINE} names.")
    return found


def _holds_weights(folder: Path, name: str) -> bool:
    return any(each.endswith((".safetensors", *PICKLES)) for each in names_in(folder, name))


def _model(root: Path, folder: str, name: str) -> Model:
    place, shown = root / folder, f"{name}/{folder}" if folder else name
    config = read_object(place / CONFIG, f"{CONFIG} of {shown}") if os.path.lexists(place / CONFIG) else {}
    index = _index(place, shown)
    files = _listed(place / index, shown) if index else [_weights(place, shown)]
    shards = {file: _file(place / file, f"{shown}/{file}") for file in files}
    if are_factors([key for shard in shards.values() for key in shard.tensors]):
        raise IncompatibleError(no_model(name))
    _check_once(shards, shown)
    return Model(folder, config, shards, index)


def _index(place: Path, name: str) -> str | None:
    found = [each for each in names_in(place, name) if each.endswith(INDEX)]
    ours = [f"{stem}{INDEX}" for stem in STEMS]
    return next((file for file in (*ours, *found) if file in found), None)


def _listed(path: Path, name: str) -> list[str]:
    """The files of an index, in order."""
    table = read_object(path, f"{path.name} of {name}").get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(each, str) for each in table.values()):
        raise SourceError(f"{path.name} of {printable(name)} has no weight_map of tensors to files.")
    files = sorted(set(table.values()))
    counts = {found[1] for file in files if (found := NUMBERED.fullmatch(file))}
    if len(counts) == 1 and all(map(NUMBERED.fullmatch, files)) and len(files) < int(next(iter(counts))):
        raise SourceError(
            f"{path.name} of {printable(name)} names {len(files)} of {int(next(iter(counts)))} shards: it is "
            "cut short. Download or save the model again."
        )
    for file in files:
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise SourceError(f"{path.name} of {printable(name)} names {printable(file)}, which is no shard.")
    return files


def _weights(place: Path, name: str) -> str:
    """The one file of weights of a folder without an index."""
    there = names_in(place, name)
    found = [each for each in there if each.endswith(".safetensors")]
    plain = [f"{stem}.safetensors" for stem in STEMS]
    known = next((file for file in plain if file in found), None) or (found[0] if len(found) == 1 else None)
    if known is not None:
        return known
    if found and all(map(NUMBERED.fullmatch, found)):
        raise SourceError(
            f"{printable(name)} has {len(found)} shards and no index, which says what is in them: add the "
            f"{STEMS[0]}{INDEX} that belongs to them."
        )
    if found:
        some = ", ".join(map(printable, found[:4]))
        raise SourceError(f"{printable(name)} has several files of weights ({some}): name one of them.")
    if any(each.endswith(".gguf") for each in there):
        raise _gguf(name)
    if any(each.endswith(PICKLES) for each in there):
        raise _unsafe(name)
    raise SourceError(f"{printable(name)} has no .safetensors: it is no model that can be read.")


def _check_once(shards: Mapping[str, File], name: str) -> None:
    seen: dict[str, str] = {}
    for file, shard in shards.items():
        for key in shard.tensors:
            if key in seen:
                raise SourceError(f"{printable(key)} is in two files of {printable(name)}: it is damaged.")
            seen[key] = file


def _gguf(name: str) -> IncompatibleError:
    return IncompatibleError(f"{printable(name)} is a GGUF model: name the model that it was made from.")


def _unsafe(name: str) -> IncompatibleError:
    return IncompatibleError(
        f"{printable(name)} has its weights in pickles only, which could run code when they are read: save "
        "the model with safe_serialization=True first."
    )
