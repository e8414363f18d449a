"""File formats: the only place that knows them. `load` finds the dialect; `create` writes."""

from __future__ import annotations

import os
import re
from pathlib import Path

from loramerge.adapter import Adapter
from loramerge.errors import SourceError, UsageError, printable
from loramerge.formats.alpha import Alpha, check_alpha
from loramerge.formats.config import changes_base
from loramerge.formats.initial import made_plain
from loramerge.formats.opening import load_path
from loramerge.formats.peft import load_folder
from loramerge.formats.saving import save

HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*(?<!\.safetensors)")  # how the Hub names a repository

__all__ = ["Alpha", "load", "save"]


def load(
    source: str | Path | Adapter,
    alpha: Alpha | None = None,
    *,
    optional: bool = False,
    allow_pickle: bool = False,
    initial: str | Path | None = None,
) -> Adapter:
    """Read an adapter of any dialect (see docs/formats.md). Only headers are read; tensors when asked.

    Args:
        source: a path; an `Adapter` comes back as it is.
        alpha: for a file that does not say its own: a number, or ``"rank"`` for scale 1.
        allow_pickle: read .bin and .pt files too. Nothing in them is run.
        initial: the folder of the adapter that a PiSSA, OLoRA, CorDA or LoRA-GA training began with.
        optional: leave `alpha` aside, instead of refusing it, where the source says its own.

    Raises:
        SourceError: absent, cut short or malformed.
        IncompatibleError: no plain LoRA, or of unknown alpha.
        UsageError: an alpha for a source that says its own.

    >>> load("fixtures/a.safetensors")
    <Adapter fixtures/a.safetensors: 12 modules, rank 8>
    """
    if isinstance(source, Adapter):
        return source
    check_alpha(alpha)
    path, name = Path(source), str(source) or "."
    if initial is not None:
        return _made_plain(path, Path(initial), alpha, allow_pickle)
    if HUB.fullmatch(name) and not os.path.exists(path):
        raise SourceError(
            f"{printable(name)} does not exist here. If you mean a repository of the Hub: download it first."
        )
    return load_path(path, name, alpha, optional, allow_pickle)


def _made_plain(path: Path, start: Path, alpha: Alpha | None, allow_pickle: bool) -> Adapter:
    if not os.path.isdir(path) or not os.path.isdir(start):
        odd = start if os.path.isdir(path) else path
        raise UsageError(f"--initial is for PEFT folders, and {printable(odd)} is none.")
    adapter, first = (
        load_folder(each, str(each), alpha, True, allow_pickle, known_start=True) for each in (path, start)
    )
    if not changes_base(adapter.config):
        raise UsageError(f"{printable(path)} is a plain LoRA already: drop --initial for it.")
    return made_plain(adapter, first)
