"""What the sources are for, in words: told by the user, listed beside them, or said by their model cards."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from loramerge.adapters.adapter import Adapter
from loramerge.errors import SourceError, UsageError, printable, say
from loramerge.formats.cards.readme import CARD, card
from loramerge.formats.files.json import read_object
from loramerge.sources.expand import DESCRIPTIONS as FILE

Descriptions = Mapping[str, str] | str | Path | None
Shelves = dict[Path, Mapping[str, str]]  # folder -> its descriptions


def descriptions(adapters: Sequence[Adapter], given: Descriptions = None) -> list[str]:
    """A description of every adapter.

    Args:
        given: {source: text}, or a JSON file of that. What it lacks is looked up in descriptions.json in the
            folder that an adapter lies in, and then in its own README.md.

    Raises:
        UsageError: a text for something that is no source, or an adapter of which nothing is said.
        SourceError: a file that cannot be read.
    """
    told = _checked(given, adapters) if isinstance(given, Mapping) else {}
    listed = {} if given is None or isinstance(given, Mapping) else _read(Path(given), str(given))
    shelves: Shelves = {}
    return [_description(adapter, told, listed, shelves) for adapter in adapters]


def names(adapter: Adapter) -> tuple[str, ...]:
    """What a source may be called: as shown, by its path, the last part of it, or that without its ending."""
    home = _home(adapter)
    paths = () if home is None else (str(home), home.name)
    found = dict.fromkeys([adapter.name, *paths, adapter.name.removesuffix(".safetensors")])
    found |= dict.fromkeys(path.removesuffix(".safetensors") for path in paths)
    return tuple(name for name in found if name)


def _home(adapter: Adapter) -> Path | None:
    """The folder of an adapter, or its file if it is a bare one."""
    if not adapter.provenance.files:
        return None
    file = adapter.provenance.files[0]
    return file if adapter.bare else file.parent


def _repository(adapter: Adapter) -> Path | None:
    """The root of the Hub repository that a file lies in: its card and descriptions count for the file."""
    came = adapter.provenance
    depth = len((came.hub or "").split("/")) - 2  # org/name/path
    return came.files[0].parents[depth - 1] if depth > 0 and came.files else None


def _checked(told: Mapping[str, str], adapters: Sequence[Adapter]) -> dict[str, str]:
    """By names without a trailing slash or a leading dot."""
    known = {name for adapter in adapters for name in names(adapter)}
    kept = {}
    for name, text in told.items():
        short = name if name in known else str(Path(name))
        if short not in known:
            raise UsageError(
                f"{say('descriptions')} names {printable(name)}, which is not one of the sources."
            )
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"The description of {printable(name)} is empty: say what it is good at.")
        kept[short] = text
    return kept


def _description(
    adapter: Adapter, told: Mapping[str, str], listed: Mapping[str, str], shelves: Shelves
) -> str:
    own = names(adapter)
    for source in (told, listed, _beside(adapter, shelves)):
        if found := next((source[name] for name in own if name in source), None):
            return found
    return _of_card(adapter)


def _beside(adapter: Adapter, shelves: Shelves) -> Mapping[str, str]:
    """The descriptions.json in the folder that the adapter lies in, read once."""
    home = _home(adapter)
    if home is None:
        return {}
    folder = Path(os.path.abspath(home)).parent  # of `.` too, and of the link rather than of what it leads to
    if folder not in shelves:
        file = folder / FILE
        shelves[folder] = _read(file, str(home.parent / FILE)) if os.path.lexists(file) else {}
    return shelves[folder]


def _read(path: Path, name: str) -> dict[str, str]:
    found = read_object(path, name)
    for source, text in found.items():
        if not isinstance(text, str) or not text.strip():
            raise SourceError(f"{printable(name)} has no text for {printable(source)}.")
    return found


def _of_card(adapter: Adapter) -> str:
    home, name = _home(adapter), printable(adapter.name)
    remedy = f"Say it with {say('descriptions', {name: '…'})}, or in {FILE} beside it."
    # A README.md beside a bare file is not its card: it may be about anything in that folder.
    folder = _repository(adapter) if adapter.bare else home
    text = None if folder is None else card(folder, adapter.name)
    if text is None:
        why = f"has no {CARD}" if folder is not None else "has no model card of its own"
        raise UsageError(f"Nothing says what {name} is good at: it {why}. {remedy}")
    if not text:
        raise UsageError(
            f"Nothing says what {name} is good at: its {CARD} is empty, or only a template. {remedy}"
        )
    return text
