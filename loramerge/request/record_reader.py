"""A merge's record as it is read again. It is a file that we do not trust: every field is checked by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from loramerge.errors import SourceError, printable
from loramerge.formats.peft.config import plausible
from loramerge.hub.names import COMMIT
from loramerge.hub.names import parse as parse_name
from loramerge.request.fields import Reader
from loramerge.request.record import SCHEMA
from loramerge.request.schedule import Rule, Weight

SHA256 = re.compile(r"[0-9a-f]{64}")
SETTINGS: dict[str, type] = {  # what a record may set again: nothing that names a place or runs code
    "only": str,
    "exclude": str,
    "dtype": str,
    "profile": str,
    "allow_base_mismatch": bool,
    "extras": str,
    "renormalise": bool,
    "format": str,
    "embedding": str,
    "left_out": dict,
    "scale": float,
    "modules": list,
    "ranks": dict,
    "consumer": str,
    "max_rank": int,
}


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """One source as it was: its name, the SHA-256 of its files, alpha given for it, digest of its scales.

    `hub` is its place there; `revision` then is a commit.
    """

    name: str
    revision: str | None
    sha256: Mapping[str, str]
    weight: Weight
    alpha: Any
    scales: str | None
    hub: str | None = None

    @property
    def pinned(self) -> str | None:
        """Its name on the Hub with the commit of then, if it was from there."""
        if self.hub is None:
            return None
        return str(replace(parse_name(f"hf://{self.hub}"), revision=self.revision))

    @property
    def last(self) -> str:
        """The last part of the name, whatever it says: a record leads to no other folder."""
        return re.split(r"[\\/]", self.name)[-1]

    @property
    def names(self) -> tuple[str, ...]:
        """What the user may call it."""
        return self.name, self.last

    @property
    def files(self) -> tuple[str, ...]:
        """Names under which it may lie: without the number, too, that told two of one name apart."""
        found = dict.fromkeys([self.last, re.sub(r"#\d+$", "", self.last)])
        return tuple(name for name in found if name not in ("", ".", ".."))


@dataclass(frozen=True, slots=True)
class Record:
    """Everything that decided a merge."""

    sources: tuple[SourceRecord, ...]
    method: str
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    rules: tuple[Rule, ...]
    versions: Mapping[str, str]

    @property
    def weights(self) -> list[Weight]:
        return [source.weight for source in self.sources]


def parse(values: Mapping[str, Any], where: str) -> Record:
    """The record that these values are.

    Raises:
        SourceError: they are none, or of another version; the message calls them `where`.
    """
    reader = Reader(f"{where} cannot be replayed", SourceError)
    if values.get("schema") != SCHEMA:
        reader.fail(f"its schema is {printable(values.get('schema'), 40)}, and this version reads {SCHEMA}")
    if not values.get("sources"):
        reader.fail("it names no sources")
    method = reader.table(values, "method")
    settings = _settings(reader, reader.table(values, "settings"))
    return Record(
        tuple(_source(reader, value) for value in reader.typed(values, "sources", list)),
        reader.typed(method, "name", str),
        reader.table(method, "options"),
        settings,
        tuple(reader.rule(value) for value in settings.pop("modules", [])),
        {k: v for k, v in reader.table(values, "versions").items() if isinstance(v, str)},
    )


def _source(reader: Reader, value: Any) -> SourceRecord:
    if not isinstance(value, dict):
        reader.fail("a source is no table")
    name = reader.typed(value, "name", str)
    marks = reader.table(value, "sha256")
    if not marks:
        reader.fail(f"{printable(name)} was merged from memory, so there is no file to find")
    if not all(isinstance(mark, str) and SHA256.fullmatch(mark) for mark in marks.values()):
        reader.fail(f"sha256 of {printable(name)} does not map files to 64 hexadecimal digits")
    revision, scales = (
        None if value.get(field) is None else reader.typed(value, field, str)
        for field in ("revision", "scales")
    )
    hub = _hub(reader, value, revision)
    return SourceRecord(name, revision, marks, _weight(reader, value), _alpha(reader, value), scales, hub)


def _weight(reader: Reader, source: Mapping[str, Any]) -> Weight:
    """Its weight, or what a method makes weights of."""
    given = next((field for field in ("weight", "similarity") if field in source), "weight")
    return reader.weight(source.get(given), given)


def _hub(reader: Reader, value: Mapping[str, Any], revision: str | None) -> str | None:
    """A place on the Hub at one commit: nothing else there is asked for by a record."""
    if value.get("hub") is None:
        return None
    hub = reader.typed(value, "hub", str)
    try:
        name = parse_name(f"hf://{hub}")
    except SourceError:
        reader.fail(f"hub is {printable(hub)}, which is no place on the Hub")
    if name.revision or not COMMIT.fullmatch(revision or ""):
        reader.fail(f"{printable(hub)} has no commit of 40 digits")
    return name.place


def _alpha(reader: Reader, source: Mapping[str, Any]) -> float | str | None:
    if source.get("alpha") in (None, "rank"):
        return source.get("alpha")
    alpha = reader.number(source["alpha"], "alpha")
    if not (alpha > 0 and plausible(alpha)):
        reader.fail(f"alpha is {alpha:g}")
    return alpha


def _settings(reader: Reader, settings: Mapping[str, Any]) -> dict[str, Any]:
    if settings.get("dense_delta"):
        reader.fail(
            "it is of dense deltas: combine --dense-delta with the same sources and options makes them"
        )
    for name in settings:
        if name not in SETTINGS:
            reader.fail(f"it has the setting {printable(name)}, which this version does not know")
    given = {name: value for name, value in settings.items() if value is not None}
    for path, rank in reader.table(given, "ranks").items() if "ranks" in given else ():
        if type(rank) is not int or rank < 1:
            reader.fail(f"the rank of {printable(path)} is {printable(repr(rank), 40)}")
    for path, similarity in reader.table(given, "left_out").items() if "left_out" in given else ():
        reader.number(similarity, f"the similarity of {printable(path)}")
    kept = {name: reader.typed(given, name, SETTINGS[name]) for name in given if name != "scale"}
    return {**kept, "scale": reader.scale(given["scale"])} if "scale" in given else kept
