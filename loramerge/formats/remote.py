"""Adapters of the Hub: downloaded and read like any other, or inspected there by their header."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.near import nearby
from loramerge.errors import SourceError, printable
from loramerge.formats.bundles import record_of
from loramerge.formats.cards.licences import licence_in
from loramerge.formats.dialects import Header
from loramerge.formats.files.destination import RECORD
from loramerge.formats.files.json import read_object
from loramerge.formats.files.safetensors import File, open_elsewhere
from loramerge.formats.raw import Raw, look
from loramerge.formats.remote_alphas import closed, with_alphas
from loramerge.hub.choice import CONFIG, chosen
from loramerge.hub.client import Listing, ask
from loramerge.hub.failures import Missing, Unreachable
from loramerge.hub.fetch import download, fetch, offline, sha256_of
from loramerge.hub.names import HubName, inside, is_hub
from loramerge.hub.ranges import Ranged

Read = Callable[[Path, str, File | None], Adapter]  # place, name for messages, weights that are elsewhere


def load_hub(source: str, name: HubName, read: Read, allow_pickle: bool) -> Adapter:
    """An adapter of the Hub, downloaded if the cache does not have it; `read` reads what then lies here.

    Raises:
        SourceError: it is neither here nor there, or cannot be had; each reason has its sentence.
    """
    with both_readings(source):
        found = fetch(name, allow_pickle)
    adapter = read(found.path, found.name.shown, None)
    known = replace(
        adapter.provenance,
        revision=found.commit,
        hub=found.name.place,
        licence=adapter.provenance.licence or licence_in(found.card),
        marks={path.name: mark for path in adapter.provenance.files if (mark := sha256_of(path))},
    )
    notes = (found.note,) if found.note else ()
    return replace(adapter, provenance=known, oddities=(*adapter.oddities, *notes))


@dataclass(frozen=True, eq=False)
class Seen:
    """An adapter of the Hub of which only the small files are on this disk.

    Args:
        name: with the path of its file, if it is one.   listing: its repository at the commit.
        place: where its folder or file would lie; its config does.   file: its weights, still on the Hub.
        note: that its alphas are only stated, if they are.
    """

    name: HubName
    listing: Listing
    place: Path
    file: File
    note: str


def seen(source: str, name: HubName, allow_pickle: bool) -> Seen | None:
    """The header of its weights, read by range, and its config.

    Alphas inside the weights are read too, where few requests reach them all. Where they do not, a sample of
    them is, and the metadata of the file is believed if it says the same. None where no metadata says the
    alphas, or the sample says others, and where there is no network or only a pickle.
    """
    if offline():
        return None
    try:
        with both_readings(source):
            listing = ask(name)
    except Unreachable:
        return None
    with both_readings(source):
        choice = chosen(name, listing, allow_pickle)
    if not choice.weights.endswith(".safetensors"):
        return None
    nowhere = Path(os.devnull)  # nothing can lie beside it
    root = download(name, listing.commit, choice.beside) if choice.beside else nowhere
    found = replace(name, path=choice.place)
    ranged = Ranged(name, listing.commit, choice.weights)
    file = open_elsewhere(found.shown, root / choice.weights, ranged.open(), ranged.read)
    if (whole := with_alphas(file, ranged)) is None:
        return None
    return Seen(found, listing, root / choice.place, *whole)


def peek(source: str, name: HubName, read: Read, allow_pickle: bool) -> Adapter:
    """The same from what is `seen` of it, which says so and hands out no factors where its alphas are only
    stated; else it is downloaded."""
    found = seen(source, name, allow_pickle)
    if found is None:
        return load_hub(source, name, read, allow_pickle)
    adapter = read(found.place, found.name.shown, found.file)
    known = replace(
        adapter.provenance,
        revision=found.listing.commit,
        hub=found.name.place,
        licence=adapter.provenance.licence or found.listing.licence,
        peeked=True,
        stated=bool(found.note),
    )
    if not found.note:
        return replace(adapter, provenance=known)
    return closed(replace(adapter, provenance=known, oddities=(*adapter.oddities, found.note)))


def look_hub(source: str, name: HubName, allow_pickle: bool) -> Raw:
    """The files of an adapter of the Hub as they are, before any reader interprets them.

    Raises:
        SourceError, IncompatibleError: as `load_hub` and `raw.look`.
    """
    found = seen(source, name, allow_pickle)
    if found is None or found.note:  # rules need the true alphas
        with both_readings(source):
            here = fetch(name, allow_pickle)
        return look(here.path, here.name.shown, allow_pickle)
    folder = found.place != found.file.path and os.path.isfile(found.place / CONFIG)
    shown = found.name.shown
    config = read_object(found.place / CONFIG, f"{CONFIG} of {shown}") if folder else None
    inside = (f for f in found.listing.files if os.path.dirname(f) == found.name.path)
    beside = frozenset(map(os.path.basename, inside)) if folder else frozenset()
    return Raw(found.place, folder, Header(found.file, shown, config), beside, found.file)


def record_there(name: HubName, listing: Listing) -> dict[str, Any]:
    """What a bundle on the Hub says of itself.

    Raises:
        SourceError: it says nothing, or that it is none.
    """
    place = inside(name, RECORD)
    if place.path not in listing.files:
        raise SourceError(f"{name.shown} has no {RECORD}, so it is no bundle.")
    root = download(name, listing.commit, [place.path])
    said = record_of((root / place.path).parent)
    if said is None:
        raise SourceError(f"The {RECORD} of {name.shown} does not say that it is a bundle.")
    return said


@contextmanager
def both_readings(source: str) -> Iterator[None]:
    """What to say of a source such as `org/name` that exists neither as a path nor on the Hub."""
    try:
        yield
    except Missing as error:
        if is_hub(source):
            raise
        near = nearby(Path(source))
        raise Missing(f"{printable(source)} does not exist here, and {error}{near}") from None
    except Unreachable as error:
        if is_hub(source):
            raise
        raise Unreachable(
            f"{printable(source)} does not exist here.{nearby(Path(source))} If a repository of the Hub is "
            f"meant: {error}"
        ) from None
