"""From a path to an adapter: which files, then which dialect, then its reader."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.presence import is_file
from loramerge.formats.bundles import refuse_bundle
from loramerge.formats.dialects import FOLDER_FILES, Header, find
from loramerge.formats.files.json import read_object
from loramerge.formats.files.safetensors import File
from loramerge.formats.float8 import descaled, folded
from loramerge.formats.forms.form import NO_AID, Aid
from loramerge.formats.peft.alpha import Alpha
from loramerge.formats.peft.read import CONFIG, load_folder, noted, open_weights
from loramerge.formats.pick import called, picked, split
from loramerge.formats.wrappers import unwrapped_file

EARLY_MLX = "adapters.npz"  # of mlx-lm, before it wrote safetensors


def load_path(
    path: Path,
    name: str,
    alpha: Alpha | None = None,
    optional: bool = True,
    allow_pickle: bool = False,
    elsewhere: File | None = None,
    aid: Aid = NO_AID,
) -> Adapter:
    """The adapter in a file or folder. Only headers are read, and alphas.

    `elsewhere` is given if the weights do not lie at the path, but on the Hub.

    Raises:
        SourceError, IncompatibleError, UsageError: as the reader of its dialect says.
    """
    path, chosen = split(path)
    refuse_bundle(path, name)
    if not os.path.isdir(path) and (elsewhere is None or elsewhere.path == path):
        file = elsewhere or open_weights(path, name, allow_pickle)
        file = file if chosen is None else picked(file, chosen)
        if aid.names:
            file, notes = called(file, aid.names)
            return noted(_read(Header(file, name, alpha=alpha, optional=optional)), notes)
        return _read(Header(file, name, alpha=alpha, optional=optional, base=aid.base, gate=aid.gate))
    shown = name.rstrip("/") or name
    weights, config = _foreign(path, shown)
    if elsewhere is not None and "peft_type" not in config and (config or _is_foreign(elsewhere)):
        weights = elsewhere.path
    if weights is None:
        return load_folder(path, shown, alpha, optional, allow_pickle, file=elsewhere, aid=aid)
    file = elsewhere or open_weights(weights, f"{shown}/{weights.name}", allow_pickle)
    beside = (path / CONFIG,) if config else ()
    return _read(Header(file, shown, config, (weights, *beside), alpha, optional, aid.base, aid.gate))


def _is_foreign(file: File) -> bool:
    return file.path.name in FOLDER_FILES


def _read(header: Header) -> Adapter:
    file, notes = unwrapped_file(header.file)
    header = replace(header, file=descaled(file))
    return noted(folded(find(header).read(header)), notes)


def _foreign(folder: Path, name: str) -> tuple[Path | None, Mapping[str, Any]]:
    """The weights of a folder that is not PEFT's, and its config."""
    config: Mapping[str, Any] = {}
    if is_file(folder / CONFIG):
        config = read_object(folder / CONFIG, f"{CONFIG} of {name}")
        if "peft_type" in config:
            return None, config
    places = (folder / name for name in (*FOLDER_FILES, EARLY_MLX))
    return next((place for place in places if os.path.isfile(place)), None), config
