"""Adapters of the Hub: brought here and read as any other, or looked at from afar by their header."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from loramerge.adapter import Adapter
from loramerge.errors import printable
from loramerge.formats.licences import licence_in
from loramerge.formats.safetensors import File, open_elsewhere
from loramerge.formats.stated import closed, with_alphas
from loramerge.hub.choosing import chosen
from loramerge.hub.client import ask
from loramerge.hub.failures import Missing, Unreachable
from loramerge.hub.fetching import download, fetch, offline, sha256_of
from loramerge.hub.names import HubName, is_hub
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


def peek(source: str, name: HubName, read: Read, allow_pickle: bool) -> Adapter:
    """The same from its config and the header of its weights, which are read by range and stay on the Hub.

    Alphas inside the weights are read too, where few requests reach them all. Where they do not, a sample of
    them is, and the metadata of the file is believed if it says the same; the adapter then says so, and hands
    out no factors. It is downloaded where no metadata says the alphas, or the sample says others, and where
    there is no network or only a pickle.
    """
    if offline():
        return load_hub(source, name, read, allow_pickle)
    try:
        with both_readings(source):
            listing = ask(name)
    except Unreachable:
        return load_hub(source, name, read, allow_pickle)
    with both_readings(source):
        choice = chosen(name, listing, allow_pickle)
    if not choice.weights.endswith(".safetensors"):
        return load_hub(source, name, read, allow_pickle)
    nowhere = Path(os.devnull)  # nothing can lie beside it
    root = download(name, listing.commit, choice.beside) if choice.beside else nowhere
    found = replace(name, path=choice.place)
    ranged = Ranged(name, listing.commit, choice.weights)
    file = open_elsewhere(found.shown, root / choice.weights, ranged.open(), ranged.read)
    whole = with_alphas(file, ranged)
    if whole is None:
        return load_hub(source, name, read, allow_pickle)
    file, note = whole
    adapter = read(root / choice.place, found.shown, file)
    known = replace(
        adapter.provenance,
        revision=listing.commit,
        hub=found.place,
        licence=adapter.provenance.licence or listing.licence,
        peeked=True,
        stated=bool(note),
    )
    adapter = replace(adapter, provenance=known, oddities=(*adapter.oddities, *([note] if note else [])))
    return closed(adapter) if note else adapter


@contextmanager
def both_readings(source: str) -> Iterator[None]:
    """A source such as `org/name` may have been meant as a path: say so where it is neither."""
    try:
        yield
    except Missing as error:
        if is_hub(source):
            raise
        raise Missing(f"{printable(source)} does not exist here, and {error}") from None
    except Unreachable as error:
        if is_hub(source):
            raise
        raise Unreachable(
            f"{printable(source)} does not exist here. If a repository of the Hub is meant: {error}"
        ) from None
