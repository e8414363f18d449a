"""The record of a merge: all that decided it, written beside it and read again as a stranger's file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from loramerge.adapters.late import late
from loramerge.adapters.limits import MOST
from loramerge.errors import SourceError, printable
from loramerge.formats.peft.number import fitting
from loramerge.hub.names import COMMIT
from loramerge.hub.names import parse as parse_name
from loramerge.request.entry import taken
from loramerge.request.field import Field
from loramerge.request.request import PLAIN, Request
from loramerge.request.rules import UNBOUNDED, Weight, plain

if TYPE_CHECKING:
    from loramerge.request.reader import Reader

SCHEMA = 1
SHA256 = late(r"[0-9a-f]{64}")
APART = ("tuned", "base", "rank")
# setting -> its word in a record -> the word of today: a word in a record means one formula for ever
WORDS: Mapping[str, Mapping[str, str]] = {"scale": {"cosine": UNBOUNDED, "bounded cosine": "cosine"}}
BY_SOURCE = ("weights", "alpha", "initial")  # fields that stand in the entry of each source


class Start(NamedTuple):
    """The adapter that the training of a source began with: its name, and its files among the source's."""

    name: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """One source as it was.

    Args:
        sha256: file name -> SHA-256.   alpha: what was given for it.   scales: a digest of its scales.
        hub: its place there; `revision` then is a commit.   given: what its weight is called.
        base_model, licence: as its files say.   initial: what its training began with, if that was given.
        apart: names of a tuned model and its base, and the rank, if it is what these are apart.
    """

    name: str
    revision: str | None
    sha256: Mapping[str, str]
    weight: Weight
    alpha: Any
    scales: str | None
    hub: str | None = None
    given: str = "weight"
    base_model: str | None = None
    licence: str | None = None
    initial: Start | None = None
    apart: tuple[str, str, int] | None = None

    @property
    def pinned(self) -> str | None:
        """Its name on the Hub with the commit that was merged, if it came from there."""
        if self.hub is None:
            return None
        return str(replace(parse_name(f"hf://{self.hub}"), revision=self.revision))

    @property
    def names(self) -> tuple[str, ...]:
        """What the user may call it."""
        return self.name, last(self.name)

    def to_dict(self) -> dict[str, Any]:
        start = self.initial
        return {
            "name": self.name,
            "revision": self.revision,
            "sha256": dict(self.sha256),
            "alpha": float(self.alpha) if isinstance(self.alpha, int) else self.alpha,
            "scales": self.scales,
            "base_model": self.base_model,
            self.given: plain(self.weight),
            **({"hub": self.hub} if self.hub else {}),
            **({"licence": self.licence} if self.licence else {}),
            **({"initial": {"name": start.name, "files": list(start.files)}} if start else {}),
            **({"apart": dict(zip(APART, self.apart, strict=True))} if self.apart else {}),
        }


def last(name: str) -> str:
    """The last part of a name, whatever it says: a record leads to no other folder."""
    return re.split(r"[\\/]", name)[-1]


def files_of(name: str) -> tuple[str, ...]:
    """Names under which it may lie: without the number, too, that told two of one name apart."""
    found = dict.fromkeys([last(name), re.sub(r"#\d+$", "", last(name))])
    return tuple(name for name in found if name not in ("", ".", ".."))


@dataclass(frozen=True, slots=True)
class Record:
    """Everything that decided a merge.

    Args:
        request: as it was settled.   ranks: place of a module -> rank, where these are not all alike.
        left_out: name -> similarity of sources that were not chosen.   default: nobody named
            the method, and it is not the sum.
    """

    sources: tuple[SourceRecord, ...]
    method: str
    options: Mapping[str, Any]
    request: Request = PLAIN
    ranks: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    default: bool = False

    @property
    def weights(self) -> list[Weight]:
        return [source.weight for source in self.sources]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `parse` reads them again. Holds no path and no time."""
        given = {each.name for each, _ in self.request.given()}
        settings = {
            each.setting: _written(each.setting, _plain(getattr(self.request, each.name)))
            for each in kept()
            if each.always or each.name in given
        }
        return {
            "schema": SCHEMA,
            "sources": [source.to_dict() for source in self.sources],
            "method": {
                "name": self.method,
                "options": dict(self.options),
                **({"default": True} if self.default else {}),
            },
            "settings": {
                **settings,
                **({"ranks": dict(self.ranks)} if self.ranks else {}),
                **({"left_out": dict(self.left_out)} if self.left_out else {}),
            },
            "versions": dict(self.versions),
        }


def kept() -> Iterator[Field]:
    """The fields of a request that are settings of a record."""
    return (each for name, each in taken("record").items() if name not in BY_SOURCE)


def _plain(value: Any) -> Any:
    return [rule.to_plain() for rule in value] if isinstance(value, tuple) else value


def _written(setting: str, value: Any) -> Any:
    """What a record says for a value of today."""
    words = {today: then for then, today in WORDS.get(setting, {}).items()}
    return words.get(value, value) if isinstance(value, str) else value


def _read(setting: str, value: Any) -> Any:
    """What a value of a record is called today."""
    return WORDS.get(setting, {}).get(value, value) if isinstance(value, str) else value


def parse(values: Mapping[str, Any], where: str) -> Record:
    """The record that these values are. It is a file that we do not trust: every field is checked by name.

    Raises:
        SourceError: they are none, or of another version; the message calls them `where`.
    """
    from loramerge.request.reader import Reader  # a merge writes a record, and reads none

    reader = Reader(f"{where} cannot be replayed", SourceError)
    if values.get("kind", "merge") != "merge":
        reader.fail(f"it is a {printable(values['kind'], 40)}, which loramerge route makes of its sources")
    if values.get("schema") != SCHEMA:
        reader.fail(f"its schema is {printable(values.get('schema'), 40)}, and this version reads {SCHEMA}")
    if not values.get("sources"):
        reader.fail("it names no sources")
    method = reader.table(values, "method")
    settings = reader.table(values, "settings")
    sources = tuple(_source(reader, value) for value in reader.typed(values, "sources", list))
    return Record(
        sources,
        reader.typed(method, "name", str),
        reader.table(method, "options"),
        _request(reader, settings, sources),
        _ranks(reader, settings),
        _left_out(reader, settings),
        {k: v for k, v in reader.table(values, "versions").items() if isinstance(v, str)},
        method.get("default") is True,
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
    given = next((field for field in ("weight", "similarity") if field in value), "weight")
    weight, alpha = reader.weight(value.get(given), given), _alpha(reader, value)
    if given == "similarity" and not (isinstance(weight, float) and weight > 0):
        reader.fail(f"similarity of {printable(name)} is not above 0, and only sources above 0 are merged")
    hub, start = _hub(reader, value, revision), _start(reader, value, marks)
    apart = _apart(reader, value)
    return SourceRecord(name, revision, marks, weight, alpha, scales, hub, given, initial=start, apart=apart)


def _apart(reader: Reader, value: Mapping[str, Any]) -> tuple[str, str, int] | None:
    if value.get("apart") is None:
        return None
    found = reader.table(value, "apart")
    tuned, base, rank = (reader.typed(found, *each) for each in zip(APART, (str, str, int), strict=True))
    if not 1 <= rank <= MOST:
        reader.fail(f"the rank of a tuned model is {rank}, not one from 1 to {MOST}")
    return tuned, base, rank


def _start(reader: Reader, value: Mapping[str, Any], marks: Mapping[str, str]) -> Start | None:
    if value.get("initial") is None:
        return None
    found = reader.table(value, "initial")
    files = reader.typed(found, "files", list)
    if not files or not all(isinstance(file, str) and file in marks for file in files):
        reader.fail("the files of an initial adapter are not among those of its source")
    return Start(reader.typed(found, "name", str), tuple(files))


def _hub(reader: Reader, value: Any, revision: str | None) -> str | None:
    """A place on the Hub at one commit: nothing else there is asked for by a record."""
    if value.get("hub") is None:
        return None
    hub = reader.typed(value, "hub", str)
    try:
        name = parse_name(f"hf://{hub}")
    except SourceError:
        reader.fail(f"hub is {printable(hub)}, which is not a place on the Hub")
    if name.revision or not COMMIT.fullmatch(revision or ""):
        reader.fail(f"{printable(hub)} has no commit of 40 digits")
    return name.place


def _alpha(reader: Reader, source: Mapping[str, Any]) -> float | str | None:
    given = source.get("alpha")
    if given is None or (isinstance(given, str) and fitting(given) is not None):
        return given
    alpha = reader.number(given, "alpha")
    if fitting(alpha) is None:
        reader.fail(f"alpha is {alpha:g}")
    return alpha


def _request(reader: Reader, settings: Mapping[str, Any], sources: Sequence[SourceRecord]) -> Request:
    if settings.get("dense_delta"):
        reader.fail(
            "it is of dense deltas: combine --dense-delta with the same sources and options makes them"
        )
    known = {each.setting: each for each in kept()}
    for name in settings:
        if name not in (*known, "ranks", "left_out"):
            reader.fail(f"it has the setting {printable(name)}, which this version does not know")
    given = {
        name: _read(name, value) for name, value in settings.items() if value is not None and name in known
    }
    fields = {known[name].name: reader.field(known[name], value, name) for name, value in given.items()}
    return Request(weights=[source.weight for source in sources], **fields)


def _ranks(reader: Reader, settings: Mapping[str, Any]) -> dict[str, int]:
    found = {} if settings.get("ranks") is None else reader.table(settings, "ranks")
    for path, rank in found.items():
        if type(rank) is not int or rank < 1:
            reader.fail(f"the rank of {printable(path)} is {printable(repr(rank), 40)}")
    return found


def _left_out(reader: Reader, settings: Mapping[str, Any]) -> dict[str, float]:
    found = {} if settings.get("left_out") is None else reader.table(settings, "left_out")
    for path, similarity in found.items():
        reader.number(similarity, f"the similarity of {printable(path)}")
    return found
