"""A merge done again from its record: the same sources, proved by their SHA-256, the same decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.algorithms import Method, make
from loramerge.errors import IncompatibleError, LoramergeError, SourceError, UsageError, printable
from loramerge.formats import load
from loramerge.formats.output import is_bare
from loramerge.formats.patterns.search import searcher
from loramerge.formats.records import adapter_beside, read_record
from loramerge.formats.remote import both_readings
from loramerge.hub.fetch import RECORD, fetch
from loramerge.hub.names import hub_name
from loramerge.merge.plan import Plan, plan
from loramerge.merge.run import Merge, run
from loramerge.request.effort import Effort
from loramerge.request.record import scales_digest, versions
from loramerge.request.record_reader import Record, SourceRecord, parse
from loramerge.verbs.diff import Difference, diff


@dataclass(frozen=True, eq=False)
class Replay:
    """A recorded merge, ready to be done again.

    Args:
        plan: what will be done.   bare: it was written as one file.
        original: the adapter that the record came with, if it is still there.
        notes: sentences about what differs from then.
    """

    plan: Plan
    bare: bool
    original: Adapter | None
    notes: tuple[str, ...]

    def compare(self, merge: Merge) -> Difference | None:
        """How far the new merge is from the recorded one; None if that is not there, or was replaced."""
        if self.original is None or _place(self.original) == _place(merge.adapter):
            return None
        return diff(self.original, merge.adapter)


def _place(adapter: Adapter) -> Path | None:
    return adapter.provenance.files[0].resolve() if adapter.provenance.files else None


def replay(
    record: str | Path,
    out: str | Path | None = None,
    *,
    sources: Mapping[str, str | Path] | None = None,
    folders: Sequence[str | Path] = (),
    overwrite: bool = False,
    allow_pickle: bool = False,
    threads: int | None = None,
) -> Merge:
    """Do a recorded merge again; the tensors have the same bytes on the same platform and versions.

    Args:
        record: a loramerge.json, the folder it lies in, or a .safetensors written by `combine`; or the name
            of either on the Hub.
        out: as for `combine`.
        sources: where sources lie that are not found by name: {name in the record: path}.
        folders: more places to look in by name, before the record's folder, its parent and this one.
        allow_pickle: read .bin and .pt sources too, as then. No record says so by itself.

    Raises:
        SourceError: the record is malformed, or a source is not found.
        IncompatibleError: a source is not the one that was merged.
        UsageError, OutputError, VerificationError: as for `combine`.
    """
    todo = prepare(record, sources or {}, folders, allow_pickle).plan
    return run(todo, None if out is None else Path(out), overwrite=overwrite, effort=Effort(threads))


def prepare(
    record: str | Path,
    given: Mapping[str, str | Path],
    folders: Sequence[str | Path] = (),
    allow_pickle: bool = False,
) -> Replay:
    """Read a record, find its sources and settle everything. Errors as for `replay`."""
    path = record_place(record)
    said = parse(read_record(path, str(record)), str(record))
    _check_given(said.sources, given)
    places = [*map(Path, folders), *_folders(path)]
    adapters = [_find(source, given, places, allow_pickle) for source in said.sources]
    todo = _plan(said, adapters, str(record))
    _check_scales(said.sources, todo.sources.whole)
    return Replay(todo, is_bare(path), _original(path, record), _other_versions(said, todo.method))


def _plan(said: Record, adapters: Sequence[Adapter], where: str) -> Plan:
    """The plan of then. What the record says badly is the record's fault, not the user's."""
    patterns = [("only", said.settings.get("only")), ("exclude", said.settings.get("exclude"))]
    for option, pattern in [*patterns, *(("match", rule.match) for rule in said.rules)]:
        if pattern is not None:
            searcher(pattern, option, trusted=False)
    try:
        method = make(said.method, said.options)
        settings = {"left_out": {}, **said.settings}  # similarities are in the record, descriptions are not
        return plan(adapters, method, weights=said.weights, rules=said.rules, **settings)
    except UsageError as error:
        raise SourceError(f"{printable(where)} cannot be replayed: {printable(error, 300)}") from None
    except RecursionError:
        raise SourceError(f"{printable(where)} cannot be replayed: it is nested too deeply.") from None


def _check_given(sources: Sequence[SourceRecord], given: Mapping[str, str | Path]) -> None:
    known = {name for source in sources for name in source.names}
    for name in given:
        if name not in known:
            names = ", ".join(printable(source.name) for source in sources)
            raise UsageError(f"--source names {printable(name)}, but the merge was of {names}.")


def _folders(record: Path) -> list[Path]:
    """Where sources may lie: beside the record, beside the folder it is in, and here."""
    home = record if record.is_dir() else record.parent
    return [home, home / "..", Path()]


def _find(
    source: SourceRecord, given: Mapping[str, str | Path], folders: Sequence[Path], allow_pickle: bool
) -> Adapter:
    named = next((given[name] for name in source.names if name in given), None)
    places: list[Any] = [folder / file for folder in folders for file in source.files]
    places = [place for place in places if place.exists()] if named is None else [named]
    found: list[str | Path] = [*places, *([source.pinned] if source.pinned and named is None else [])]
    if not found:
        raise SourceError(
            f"The source {printable(source.name)} is neither beside the record nor here. Say where it lies: "
            f"--source {printable(source.name)}=PATH."
        )
    failures: list[LoramergeError] = []
    for place in found:
        try:
            return _opened(source, place, allow_pickle)
        except LoramergeError as error:
            failures.append(error)
    raise failures[-1 if source.pinned else 0]


def _opened(source: SourceRecord, place: str | Path, allow_pickle: bool) -> Adapter:
    """The adapter there, under its recorded name.

    Raises:
        IncompatibleError: it is another one.
    """
    adapter = load(place, source.alpha, optional=True, allow_pickle=allow_pickle)
    found = adapter.provenance.sha256()
    if sorted(found.values()) != sorted(source.sha256.values()):
        changed = [name for name, mark in source.sha256.items() if mark not in found.values()]
        raise _other(source, place, f"{changed[0] if changed else 'one more file'} has another SHA-256")
    provenance = replace(adapter.provenance, name=source.name, revision=source.revision, hub=source.hub)
    return replace(adapter, name=source.name, provenance=provenance)


def _check_scales(sources: Sequence[SourceRecord], adapters: Sequence[Adapter]) -> None:
    """A scale may come from a file that has no SHA-256 in the record: a config beside a bare file."""
    for source, adapter in zip(sources, adapters, strict=True):
        if source.scales is not None and scales_digest(adapter) != source.scales:
            place = adapter.provenance.files[0]
            raise _other(source, place, "a file beside it gives it another alpha than then")


def _other(source: SourceRecord, place: str | Path, how: str) -> IncompatibleError:
    return IncompatibleError(
        f"{printable(place)} is not the {printable(source.name)} that was merged: {printable(how)}. Find the "
        f"one of then, and name it with --source {printable(source.name)}=PATH."
    )


def record_place(record: str | Path) -> Path:
    """Where a record lies; one on the Hub is brought here with its adapter."""
    name = hub_name(record)
    if name is None:
        return Path(record)
    with both_readings(str(record)):
        return fetch(name, also=[RECORD]).path


def _original(path: Path, record: str | Path) -> Adapter | None:
    """The recorded adapter, if it can still be read."""
    place = adapter_beside(path)
    try:
        found = None if place is None else load(place)
    except LoramergeError:
        return None
    name = hub_name(record)
    return found if found is None or name is None else replace(found, name=name.shown)


def _other_versions(said: Record, method: Method) -> tuple[str, ...]:
    here = versions(method)
    other = [f"{name} {then}" for name, then in sorted(said.versions.items()) if here.get(name) != then]
    if not other:
        return ()
    return (f"made with {printable(', '.join(other))}: numbers may differ in their last digit",)
