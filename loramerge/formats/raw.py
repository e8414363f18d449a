"""What a folder or a file holds, before anything is made of it: settings, tensors, names of other files."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from loramerge.adapters.adapter import Adapter, Tensor
from loramerge.errors import LoramergeError, SourceError, printable
from loramerge.formats.bundles import refuse_bundle
from loramerge.formats.dialects import FOLDER_FILES, PEFT, Header, find
from loramerge.formats.files.atomic import put_back
from loramerge.formats.files.json import parse_object, read_object
from loramerge.formats.files.safetensors import File
from loramerge.formats.files.shards import open_shards
from loramerge.formats.forms.form import NO_AID, Aid
from loramerge.formats.peft.alpha import DIFFUSERS, Alpha
from loramerge.formats.peft.names import PICKLED, UNKNOWN, WEIGHTS, parse
from loramerge.formats.peft.read import CONFIG, instead, open_weights
from loramerge.formats.reader import EARLY_MLX, load_path


@dataclass(frozen=True, eq=False)
class Raw:
    """The files of an adapter as they are, of whatever kind it is.

    Args:
        place: the folder, or the file.   folder: it has a config of its own.
        header: its config and its tensors under their own names.
        beside: names of the files in its folder.   elsewhere: its weights, if they are not there.
        aid: what the user gives beside, if its form needs that.
    """

    place: Path
    folder: bool
    header: Header
    beside: frozenset[str] = field(default_factory=frozenset)
    elsewhere: File | None = None
    aid: Aid = NO_AID

    def read(self, alpha: Alpha | None = None, allow_pickle: bool = False) -> Adapter:
        """The adapter that loramerge makes of it.

        Raises:
            SourceError, IncompatibleError: as `load`.
        """
        return load_path(self.place, self.header.name, alpha, True, allow_pickle, self.elsewhere, self.aid)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return self.header.tensors

    @property
    def weights(self) -> str:
        """The name of the file that holds the tensors."""
        return self.header.file.path.name

    @property
    def dialect(self) -> str:
        """The name of the format as which it is read; `UNKNOWN` where its names say nothing."""
        if "peft_type" in (self.header.config or {}):
            return PEFT.name
        found = find(self.header)
        return UNKNOWN if found is PEFT and not any(map(parse, self.tensors)) else found.name

    @cached_property
    def settings(self) -> Mapping[str, Mapping[str, Any]]:
        """Component -> its settings in the header of a file, as diffusers keeps them; "" for the nameless."""
        said: dict[str, dict[str, Any]] = defaultdict(dict)
        if not self.folder and DIFFUSERS in self.header.metadata:
            try:
                parsed = parse_object(self.header.metadata[DIFFUSERS], DIFFUSERS)
            except LoramergeError:  # who reads it says so; to others it is nothing
                parsed = {}
            for key, value in parsed.items():
                component, _, setting = key.rpartition(".")
                said[component][setting] = value
        return said

    @property
    def config(self) -> Mapping[str, Any]:
        """adapter_config.json; of a file, the settings of its only component."""
        one = next(iter(self.settings.values())) if len(self.settings) == 1 else {}
        return self.header.config or one


def look(place: Path, name: str, allow_pickle: bool = False) -> Raw:
    """The files at a place. Only headers are read, and nothing is refused for what it means.

    Raises:
        SourceError: there is no adapter, or a file cannot be read.
        IncompatibleError: a pickle, and these are not allowed.
    """
    put_back(place)
    refuse_bundle(place, name)
    if not os.path.isdir(place):
        return Raw(place, False, Header(open_weights(place, name, allow_pickle), name))
    names = _listed(place, name)
    folder = CONFIG in names
    sharded = open_shards(place, name) if not {WEIGHTS, PICKLED} & set(names) else None
    weights = sharded.path.name if sharded is not None else _weights(place, names, name)
    file = sharded or open_weights(place / weights, f"{name}/{weights}", allow_pickle)
    config = read_object(place / CONFIG, f"{CONFIG} of {name}") if folder else None
    return Raw(place if folder else place / weights, folder, Header(file, name, config), frozenset(names))


def _listed(place: Path, name: str) -> list[str]:
    try:
        with os.scandir(place) as entries:
            return sorted(entry.name for entry in entries if entry.is_file())
    except OSError as error:
        raise SourceError(f"{printable(name)} cannot be read: {error.strerror}. Check its rights.") from error


def _weights(place: Path, names: list[str], name: str) -> str:
    """The file of weights among these."""
    known = [each for each in (WEIGHTS, PICKLED, *reversed(FOLDER_FILES), EARLY_MLX) if each in names]
    found = known or [each for each in names if each.endswith(".safetensors")]
    if len(found) != 1:
        from loramerge.adapters.whole import is_whole, no_adapter  # only an adapter has one

        if is_whole(names):
            raise SourceError(no_adapter(name))
    if not found:
        if what := instead(place):
            raise SourceError(f"{printable(name)} holds no file of weights: {what}.")
        some = ", ".join(printable(each, 60) for each in names[:3]) or "it holds no files"
        raise SourceError(f"{printable(name)} holds no file of weights ({some}): name the adapter's own.")
    if len(found) > 1 and not known:
        some = ", ".join(printable(each, 60) for each in found[:3])
        raise SourceError(f"{printable(name)} holds several files of weights ({some}): name one of them.")
    return found[0]
