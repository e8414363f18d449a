"""File formats: the only place that knows them. `load` finds the dialect; `create` writes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.arguments import checked
from loramerge.adapters.original import one_state
from loramerge.errors import UsageError, printable, say
from loramerge.formats.files.atomic import put_back
from loramerge.formats.files.safetensors import File
from loramerge.formats.forms.form import NO_AID, Aid
from loramerge.formats.peft.alpha import Alpha, check_alpha
from loramerge.formats.peft.config import changes_base
from loramerge.formats.peft.read import load_folder
from loramerge.formats.reader import load_path
from loramerge.formats.writer import save
from loramerge.hub.names import hub_name

__all__ = ["Alpha", "load", "save"]


@checked("optional", "allow_pickle", "initial", "peeking")
def load(
    source: str | Path | Adapter,
    alpha: Alpha | None = None,
    *,
    optional: bool = False,
    allow_pickle: bool = False,
    initial: str | Path | None = None,
    peeking: bool = False,
    aid: Aid = NO_AID,
) -> Adapter:
    """What `lm.load` does, with what the user gives beside, opened, as `aid`. Arguments and errors as there.

    >>> load("fixtures/a.safetensors")
    <Adapter fixtures/a.safetensors: 12 modules, rank 8>
    """
    if isinstance(source, Adapter):
        return source
    check_alpha(alpha)
    with one_state() as originals:  # its config must not be older than its weights
        adapter = _load(source, alpha, optional, allow_pickle, initial, peeking, aid)
    return replace(adapter, provenance=replace(adapter.provenance, originals=originals))


def _load(
    source: str | Path,
    alpha: Alpha | None,
    optional: bool,
    allow_pickle: bool,
    initial: str | Path | None,
    peeking: bool,
    aid: Aid,
) -> Adapter:
    if isinstance(source, str) and not source:
        raise UsageError("An adapter without a name: give a path, or a name on the Hub.")
    found = hub_name(source)
    path, name = Path(source), str(source)
    if initial is not None:
        return _made_plain([_here(each, allow_pickle) for each in (source, initial)], alpha, allow_pickle)

    def read(place: Path, name: str, file: File | None = None) -> Adapter:
        return load_path(place, name, alpha, optional, allow_pickle, file, aid)

    put_back(path)
    if found is None:
        return read(path, name)
    from loramerge.formats import remote  # the Hub is for those who name it

    return (remote.peek if peeking else remote.load_hub)(name, found, read, allow_pickle)


def _here(source: str | Path, allow_pickle: bool) -> tuple[Path, str]:
    """Where a source lies on this disk, and its name for messages; one of the Hub is downloaded."""
    put_back(Path(source))
    found = hub_name(source)
    if found is None:
        return Path(source), str(source)
    from loramerge.hub.fetch import fetch

    return fetch(found, allow_pickle).path, found.shown


def _made_plain(pair: list[tuple[Path, str]], alpha: Alpha | None, allow_pickle: bool) -> Adapter:
    """The first of the two, relative to the second, with which its training began."""
    for place, name in pair:
        if not os.path.isdir(place):
            raise UsageError(f"{say('initial')} is for PEFT folders, and {printable(name)} is not one.")
    adapter, first = (load_folder(*each, alpha, True, allow_pickle, known_start=True) for each in pair)
    if not changes_base(adapter.config):
        raise UsageError(f"{printable(adapter.name)} is a plain LoRA already: drop {say('initial')} for it.")
    from loramerge.formats.peft.initial import made_plain  # few trainings begin with an adapter

    return made_plain(adapter, first)
