"""A merge's record as it is read again. It is a file that we do not trust: every field is checked by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from loramerge.errors import SourceError, printable
from loramerge.formats.config import plausible
from loramerge.recipe import SCHEMA

SHA256 = re.compile(r"[0-9a-f]{64}")
SETTINGS: dict[str, type] = {  # what a record may set again: nothing that names a place or runs code
    "only": str,
    "exclude": str,
    "dtype": str,
    "allow_base_mismatch": bool,
}


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """One source as it was: its name, the SHA-256 of its files, alpha given for it, digest of its scales."""

    name: str
    revision: str | None
    sha256: Mapping[str, str]
    weight: float
    alpha: Any
    scales: str | None

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
    versions: Mapping[str, str]

    @property
    def weights(self) -> list[float]:
        return [source.weight for source in self.sources]


def parse(values: Mapping[str, Any], where: str) -> Record:
    """The record that these values are.

    Raises:
        SourceError: they are none, or of another version; the message calls them `where`.
    """
    reader = _Reader(where)
    if values.get("schema") != SCHEMA:
        reader.fail(f"its schema is {printable(values.get('schema'), 40)}, and this version reads {SCHEMA}")
    if not values.get("sources"):
        reader.fail("it names no sources")
    method = reader.table(values, "method")
    return Record(
        tuple(_source(reader, value) for value in reader.typed(values, "sources", list)),
        reader.typed(method, "name", str),
        reader.table(method, "options"),
        _settings(reader, reader.table(values, "settings")),
        {k: v for k, v in reader.table(values, "versions").items() if isinstance(v, str)},
    )


def _source(reader: _Reader, value: Any) -> SourceRecord:
    if not isinstance(value, dict):
        reader.fail("a source is no object")
    name = reader.typed(value, "name", str)
    marks = reader.table(value, "sha256")
    if not marks:
        reader.fail(f"{printable(name)} was merged from memory, so there is no file to find")
    if not all(isinstance(mark, str) and SHA256.fullmatch(mark) for mark in marks.values()):
        reader.fail(f"sha256 of {printable(name)} does not map files to 64 hexadecimal digits")
    revision, scales, alpha = (value.get(field) for field in ("revision", "scales", "alpha"))
    for field in (revision, scales):
        if not isinstance(field, str | None):
            reader.fail(f"revision or scales of {printable(name)} is no text")
    if alpha not in (None, "rank"):
        alpha = reader.number(value, "alpha")
        if not (alpha > 0 and plausible(alpha)):
            reader.fail(f"alpha of {printable(name)} is {alpha:g}")
    return SourceRecord(name, revision, marks, reader.number(value, "weight"), alpha, scales)


def _settings(reader: _Reader, settings: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in settings.items():
        if name not in SETTINGS:
            reader.fail(f"it has the setting {printable(name)}, which this version does not know")
        if not isinstance(value, SETTINGS[name] | None):
            reader.fail(f"its setting {name} is {printable(repr(value), 60)}")
    return {name: value for name, value in settings.items() if value is not None}


@dataclass(frozen=True, slots=True)
class _Reader:
    """Takes fields out of objects, or says what is wrong with the record."""

    where: str

    def fail(self, how: str) -> NoReturn:
        raise SourceError(f"{printable(self.where)} cannot be replayed: {how}.")

    def typed(self, values: Mapping[str, Any], field: str, kind: type) -> Any:
        value = values.get(field)
        if not isinstance(value, kind):
            what = {"str": "text", "list": "a list", "dict": "an object"}[kind.__name__]
            self.fail(f"{field} is {printable(repr(value), 60)}, not {what}")
        return value

    def table(self, values: Mapping[str, Any], field: str) -> dict[str, Any]:
        found: dict[str, Any] = self.typed(values, field, dict)
        return found

    def number(self, values: Mapping[str, Any], field: str) -> float:
        value = values.get(field)
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
            self.fail(f"{field} is {printable(repr(value), 60)}, not a number")
        if not math.isfinite(value):
            self.fail(f"{field} is {value}, not a finite number")
        return float(value)
