"""Do a merge again from its record: with the same sources, checked by SHA-256, and the same decisions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loramerge import formats
from loramerge.adapters.adapter import Adapter
from loramerge.adapters.arguments import checked
from loramerge.adapters.base_models import without_folders
from loramerge.algorithms import Method, from_record
from loramerge.checkpoints.adapter import extracted
from loramerge.checkpoints.tuned import Tuned
from loramerge.errors import IncompatibleError, LoramergeError, SourceError, UsageError, printable, say
from loramerge.formats.output import is_bare
from loramerge.formats.records import adapter_beside, read_record
from loramerge.formats.remote import both_readings
from loramerge.hub.fetch import RECORD, fetch
from loramerge.hub.names import hub_name
from loramerge.merge.plan import Plan
from loramerge.merge.planner import Known, planned
from loramerge.merge.record import scales_digest, versions
from loramerge.merge.run import Merge, run
from loramerge.request.default import Default
from loramerge.request.entry import part
from loramerge.request.recipe import Ingredient, Recipe
from loramerge.request.record import Record, SourceRecord, files_of, last, parse
from loramerge.request.request import PLAIN, Request
from loramerge.request.signature import spelled
from loramerge.request.strangers import check_patterns, check_work
from loramerge.sources.aid import aid
from loramerge.sources.open import check_named
from loramerge.verbs.diff import Difference, diff
from loramerge.verbs.keep_form import kept


@dataclass(frozen=True, eq=False)
class Replay:
    """A recorded merge that is ready to be done again.

    Args:
        plan: what will be done.   bare: whether the merge was one file.
        original: the adapter that the record came with, if it is still there.
        notes: sentences about what is different now.
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


@spelled("replay")
@checked("record", "out", "sources", "folders")
def replay(
    record: str | Path,
    out: str | Path | None = None,
    *,
    sources: Mapping[str, str | Path] | None = None,
    folders: Sequence[str | Path] = (),
    **asked: Any,
) -> Merge:
    """Do a recorded merge again. On the same platform and versions, the tensors have the same bytes.

    Args:
        record: a loramerge.json, the folder it lies in, or a .safetensors written by `combine`; or the name
            of either on the Hub.
        out: as for `combine`.
        sources: where sources lie that are not found by name: {name in the record: path}.
        folders: more places to look in by name, before the record's folder, its parent and this one.
        {asked}

    Raises:
        SourceError: the record is malformed, or a source is not found.
        IncompatibleError: a source is not the one that was merged.
        UsageError, OutputError, VerificationError: as for `combine`.
    """
    fields, _ = part("replay", None, {"out": out, **asked})
    return done(replayed(record, Search(sources or {}, folders), Request(**fields)).plan)


def done(plan: Plan) -> Merge:
    """Carry out the plan of a record."""
    return kept(plan) if plan.request.keep_form else run(plan)


@dataclass(frozen=True)
class Search:
    """Where sources may lie.

    Args:
        named: name in the record -> path.   folders: to look in by name.
    """

    named: Mapping[str, str | Path]
    folders: Sequence[str | Path] = ()

    def places(self, names: Sequence[str], files: Sequence[str]) -> list[str | Path]:
        """Where something of these names is: where it was said, else wherever a file of that name lies."""
        said = next((self.named[name] for name in names if name in self.named), None)
        if said is not None:
            return [said]
        return [
            place for folder in self.folders for file in files if os.path.exists(place := Path(folder) / file)
        ]


def replayed(record: str | Path, search: Search, request: Request = PLAIN) -> Replay:
    """Read a record, find its sources and settle everything. Errors as for `replay`.

    Args:
        request: what the record does not say: output, effort, pickles, and where initial adapters lie.
    """
    path = record_place(record)
    said = parse(read_record(path, str(record)), str(record))
    _check_given(said.sources, search.named)
    check_named([name for source in said.sources for name in source.names], request.initial or {}, "initial")
    _check_heads(said, request)
    request = replace(request, keep_form=said.request.keep_form)
    search = replace(search, folders=[*search.folders, *_folders(path)])
    method = _method(said, str(record))
    work = check_work(method, request.allow_work, f"the record {record}")
    whole = said.request.extras != "drop"
    adapters = [
        _difference(source, search, request, whole) if source.apart else _find(source, search, request)
        for source in said.sources
    ]
    todo = _planned(said, method, adapters, str(record), request)
    _check_scales(said.sources, todo.sources.whole)
    return Replay(
        todo, is_bare(path), _original(path, record, request), (*work, *_other_versions(said, todo.method))
    )


def _check_heads(said: Record, request: Request) -> None:
    """The base that heads were compared with must be named again."""
    base, here = said.request.heads_as_lora, request.heads_as_lora
    if base is not None and here is None:
        raise UsageError(
            f"Heads of these sources were made pairs by the base model {printable(base)}: say where it lies "
            f"with {say('heads_as_lora')}."
        )
    if base is None and here is not None:
        raise UsageError(f"No heads were made pairs in this merge: leave out {say('heads_as_lora')}.")


def _method(said: Record, where: str) -> Method:
    """The method that was used. What is wrong with a record is the record's fault, not the user's."""
    try:
        return from_record(said.method, said.options)
    except UsageError as error:
        raise _not(where, error) from None
    except RecursionError:
        raise SourceError(f"{printable(where)} cannot be replayed: it is nested too deeply.") from None


def _not(where: str, error: UsageError) -> SourceError:
    return SourceError(f"{printable(where)} cannot be replayed: {printable(error, 300)}")


def _planned(said: Record, method: Method, adapters: Sequence[Adapter], where: str, request: Request) -> Plan:
    """The plan of the recorded merge. What is wrong in it is the record's fault, not the user's."""
    here = {each.name: value for each, value in request.given() if each.name != "initial"}
    try:
        check_patterns(said.request, where)
        recipe = Recipe(tuple(map(Ingredient, adapters)), method, request=replace(said.request, **here))
        default = Default(said.method) if said.default else None  # the new record says so again
        return planned(recipe, Known(said.ranks, said.left_out)).by(default)
    except UsageError as error:
        raise _not(where, error) from None


def _check_given(sources: Sequence[SourceRecord], given: Mapping[str, str | Path]) -> None:
    starts = [source.initial.name for source in sources if source.initial]
    starts += [name for source in sources for name in _models(source)]
    known = {name for source in sources for name in source.names} | set(starts)
    for name in given:
        if name not in known:
            names = ", ".join(printable(name) for name in [*(s.name for s in sources), *starts])
            raise UsageError(f"{say('sources')} names {printable(name)}, but the merge was of {names}.")


def _folders(record: Path) -> list[Path]:
    """Where sources may lie: beside the record, beside the folder it is in, and here."""
    home = record if os.path.isdir(record) else record.parent
    return [home, home / "..", Path()]


def _models(source: SourceRecord) -> tuple[str, ...]:
    """What the models are called of which a source is the difference, in full and in short."""
    return tuple(name for each in (source.apart or ())[:2] for name in (str(each), last(str(each))))


def _difference(source: SourceRecord, search: Search, request: Request, whole: bool) -> Adapter:
    """What a tuned model adds to its base, extracted again.

    Args:
        whole: tensors that differ, but of which no update is made, are in its extras.
    """
    assert source.apart is not None
    tuned, base, rank = source.apart
    places = []
    for name in (tuned, base):
        found = search.places((name, last(name)), files_of(name))
        if not found and hub_name(name) is None:
            raise SourceError(_absent(f"The model {printable(name)}, of which a source was extracted,", name))
        places.append(found[0] if found else name)
    made = extracted(Tuned(places[0], places[1], rank), request.effort.workers, whole)
    if found:  # a copy under another name, as its bytes will prove
        made = replace(made, base=replace(made.base, name=without_folders(base)))
    return _checked(source, places[0], made)


def _find(source: SourceRecord, search: Search, request: Request) -> Adapter:
    found = search.places(source.names, files_of(source.name))
    if source.pinned and not any(name in search.named for name in source.names):
        found.append(source.pinned)
    if not found:
        raise SourceError(_absent(f"The source {printable(source.name)}", source.name))
    starts = _starts(source, search, request)
    failures: list[LoramergeError] = []
    for place in found:
        for start in starts:
            try:
                return _opened(source, place, start, request)
            except LoramergeError as error:
                failures.append(error)
    raise failures[-1 if source.pinned else 0]


def _starts(source: SourceRecord, search: Search, request: Request) -> list[str | Path | None]:
    """Where the adapter may lie that the training of a source began with; None if it was merged as it is."""
    told = (
        next((request.initial[n] for n in source.names if n in request.initial), None)
        if request.initial
        else None
    )
    if told is not None:
        return [told]
    if source.initial is None:
        return [None]
    name = source.initial.name
    found: list[str | Path | None] = [*search.places((name, last(name)), files_of(name))]
    if not found:
        raise SourceError(_absent(f"The adapter {printable(name)}, with which the training of "
            f"{printable(source.name)} began,", name))  # fmt: skip
    return found


def _absent(what: str, name: str) -> str:
    return (
        f"{what} is neither beside the record nor here. Say where it lies: {say('sources', {name: 'PATH'})}."
    )


def _opened(source: SourceRecord, place: str | Path, start: str | Path | None, request: Request) -> Adapter:
    """The adapter there, under its recorded name.

    Raises:
        IncompatibleError: it is another one.
    """
    found = formats.load(
        place,
        source.alpha,
        optional=True,
        allow_pickle=request.allow_pickle,
        initial=start,
        aid=aid(request.base, request.prompt_gate, request.names, request.keep_form),
    )
    return _checked(source, place, found)


def _checked(source: SourceRecord, place: str | Path, adapter: Adapter) -> Adapter:
    """The adapter under its recorded name. Raises IncompatibleError: it is another one."""
    found = adapter.provenance.sha256()
    if sorted(found.values()) != sorted(source.sha256.values()):
        changed = [name for name, mark in source.sha256.items() if mark not in found.values()]
        raise _other(source, place, f"{changed[0] if changed else 'one more file'} has another SHA-256")
    began = adapter.provenance.initial if source.initial is None else source.initial.name
    provenance = replace(
        adapter.provenance, name=source.name, revision=source.revision, hub=source.hub, initial=began
    )
    return replace(adapter, name=source.name, provenance=provenance)


def _check_scales(sources: Sequence[SourceRecord], adapters: Sequence[Adapter]) -> None:
    """A scale may come from a file that has no SHA-256 in the record: a config beside a bare file."""
    for source, adapter in zip(sources, adapters, strict=True):
        if source.scales is not None and scales_digest(adapter) != source.scales:
            place = adapter.provenance.files[0]
            raise _other(source, place, "a file beside it gives it another alpha")


def _other(source: SourceRecord, place: str | Path, how: str) -> IncompatibleError:
    return IncompatibleError(
        f"{printable(place)} is not the {printable(source.name)} that was merged: {printable(how)}. Find the "
        f"one that was, and name it with {say('sources', {source.name: 'PATH'})}."
    )


def record_place(record: str | Path) -> Path:
    """Where a record lies; one on the Hub is brought here with its adapter."""
    name = hub_name(record)
    if name is None:
        return Path(record)
    with both_readings(str(record)):
        return fetch(name, also=[RECORD]).path


def _original(path: Path, record: str | Path, request: Request) -> Adapter | None:
    """The recorded adapter, if it can still be read."""
    place = adapter_beside(path)
    try:
        here = aid(request.base, None, kept=request.keep_form)
        found = None if place is None else formats.load(place, aid=here)
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
