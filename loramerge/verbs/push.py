"""An adapter put on the Hub: checked, described, sent in one commit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.arguments import checked
from loramerge.adapters.base_models import is_local, without_folders
from loramerge.adapters.near import nearby
from loramerge.adapters.original import read_text
from loramerge.arrays import dtypes
from loramerge.consumers import find
from loramerge.consumers.check import facts_of
from loramerge.errors import LoramergeError, SourceError, printable
from loramerge.formats import load
from loramerge.formats.bundles import Files, is_bundle
from loramerge.formats.cards.readme import LIMIT
from loramerge.formats.dialects import named
from loramerge.formats.files.destination import ADAPTER_FILES
from loramerge.formats.masks import PLACE, tasks_in
from loramerge.formats.peft.beside import told
from loramerge.formats.records import find_record
from loramerge.hub.card import write
from loramerge.hub.client import Listing, ask
from loramerge.hub.commits import OURS, Pushed, destination, kept_card, prepare, send
from loramerge.hub.escape import shell
from loramerge.hub.front_matter import CardSource, Facts, matter
from loramerge.hub.names import COMMIT, REPOSITORY, HubName, parse
from loramerge.hub.usage import LOADERS, vllm_rank
from loramerge.request.progress import Stage, Tell
from loramerge.request.request import Request
from loramerge.routing.bundle import Bundle
from loramerge.routing.reader import load_bundle
from loramerge.routing.readme import MARK, readme
from loramerge.routing.router import PLACE as ROUTER_PLACE

CARD = "README.md"
LIBRARIES = {
    "peft": "peft",
    "mlx": "mlx",
    "diffusers": "diffusers",
    "kohya": "diffusers",
    "xlabs": "diffusers",
}
MESSAGE = "Upload a LoRA adapter with loramerge"


@checked("path", "repo_id", "private", "revision", "create_pr", "report")
def push(
    path: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    report: Mapping[str, Any] | None = None,
    progress: Tell | bool | None = None,
) -> Pushed:
    """Upload an adapter to the Hub, in one commit, with a card that says how it was made.

    The adapter is loaded first: what cannot be read is not sent. From a folder only the adapter's own files
    go: config, weights, loramerge.json, loramerge.extras, its masks and README.md. If there is no README.md,
    one is written, unless the repository has one that somebody else wrote. The token is that of the stored
    login, or HF_TOKEN.

    Args:
        path: a PEFT folder or a .safetensors file.   repo_id: `org/name`; made if it does not exist.
        private: make the repository private.   revision: the branch; made if it does not exist.
        create_pr: open a pull request instead of committing.
        progress: as for `combine`; the stage is `pushing`.
        report: the figures for the card of a single file, which does not hold them (`Report.to_dict()`).

    Raises:
        SourceError, IncompatibleError: `path` is not an adapter that can be read.
        UsageError: `repo_id` or `revision` cannot be a name on the Hub.
        OutputError: nobody is logged in, the Hub refuses, or another commit came first.

    Example (tests/hub/test_push.py has it run against a server)::

        print(push("merged", "me/merged", private=True).url)
    """
    target = destination(repo_id, revision, create_pr)
    place, tell = Path(path), Request(progress=progress).tell
    if is_bundle(place):
        return _push_bundle(place, target, private, create_pr, tell)
    adapter = load(_here(place))
    files, aside = _files(place, adapter)
    now = prepare(target, private)
    notes = [_aside(aside)] if aside else []
    if left := (now.files & {*ADAPTER_FILES, PLACE, ROUTER_PLACE}) - files.keys() - {CARD}:
        notes.append(
            f"{repo_id} still has {told(left)} of an earlier push: delete there what is not of this adapter"
        )
    if adapter.base.name and is_local(adapter.base.name):
        notes.append(
            "its base model is named by a place on a disk, which others do not have: write the name that it "
            "has on the Hub as base_model_name_or_path of adapter_config.json"
        )
    # Only now: the card names the repository, and a README.md that is there is somebody's own.
    if CARD not in files:
        if kept_card(target, now):
            notes.append(f"{repo_id} has a card that loramerge did not write: it was left as it is")
        else:
            told_of = card_facts(place, adapter, repo_id, report)
            files[CARD] = write(told_of).encode("utf-8")
            if told_of.base is None:
                notes.append(
                    "nothing says its base model, so its card names none: add base_model there, or nobody "
                    "finds it by its base"
                )
    done = _sent(target, files, now.commit, create_pr, tell)
    return Pushed(done.repo, done.commit, done.url, done.changed, (*notes, *done.notes))


def _sent(
    target: HubName,
    files: Mapping[str, Path | bytes],
    parent: str,
    create_pr: bool,
    tell: Tell | None,
    message: str = MESSAGE,
) -> Pushed:
    """The commit. Progress counts every file, and the commit as one more."""
    if tell is None:
        return send(target, files, parent, message, create_pr)
    with Stage(tell, "pushing", len(files) + 1) as stage:
        done = send(target, files, parent, message, create_pr, stage.over)
        stage.step()
    return done


def _push_bundle(place: Path, target: HubName, private: bool, create_pr: bool, tell: Tell | None) -> Pushed:
    """All files of a routed bundle; its README is the card, unless somebody has written another."""
    bundle = load_bundle(place)
    found = {str(path.relative_to(place)): path for path in sorted(place.rglob("*")) if path.is_file()}
    files: dict[str, Path | bytes] = {name: path for name, path in found.items() if name in Files()}
    now = prepare(target, private)
    notes = [_aside(aside)] if (aside := sorted(found.keys() - files.keys())) else []
    if CARD not in files or MARK.encode() in read_text(place / CARD, CARD, LIMIT):
        files.pop(CARD, None)
        if kept_card(target, now):
            notes.append(f"{target.repo} has a card that loramerge did not write: it was left as it is")
        else:
            files[CARD] = _card(bundle, target.repo).encode("utf-8")
    done = _sent(target, files, now.commit, create_pr, tell, "Upload a routed bundle with loramerge")
    return Pushed(done.repo, done.commit, done.url, done.changed, (*notes, *done.notes))


def _card(bundle: Bundle, repo: str) -> str:
    """The card of a bundle: front matter, and its README."""
    base = bundle.base.name
    rows = [each for each in bundle.record.get("experts") or () if isinstance(each, dict)]
    there = _said(base) if base and REPOSITORY.fullmatch(base) else None
    facts = Facts(
        repo=repo,
        modules=len(bundle),
        rank=bundle.rank,
        dtype=dtypes.word(bundle.dtype),
        base=base,
        base_is_here=bool(base and is_local(base)),
        base_licence=there.licence if there else None,
        task=task if isinstance(task := bundle.config.get("task_type"), str) else None,
        sources=tuple(map(_source, rows)),
    )
    fetched = f"```bash\nhf download {shell(repo)} --local-dir bundle\n```"
    here = f"`lm.load_bundle` takes its name on the Hub too. This brings the folder here:\n\n{fetched}"
    return f"{matter(facts)}\n\n{OURS}\n\n{readme(bundle)}\n{here}\n"


def card_facts(place: Path, adapter: Adapter, repo_id: str, report: Mapping[str, Any] | None) -> Facts:
    """What its card tells, from what was recorded of its making.

    Raises:
        SourceError: it has a record that cannot be read.
    """
    record = find_record(place) or {}
    sources = [each for each in record.get("sources") or () if isinstance(each, dict)]
    base = adapter.base.name or _agreed(sources, "base")
    there = _said(base) if base and REPOSITORY.fullmatch(base) else None
    loaders, library = _loaders(adapter), LIBRARIES.get(adapter.dialect)
    if library not in (*loaders, "peft"):
        library = None
    task, method = adapter.config.get("task_type"), _table(record.get("method"))
    return Facts(
        repo=repo_id,
        modules=len(adapter),
        rank=adapter.rank,
        dtype=dtypes.word(adapter.dtype),
        base=without_folders(base),
        base_is_here=bool(base and is_local(base)),
        base_licence=there.licence if there else None,
        task=task if isinstance(task, str) else None,
        pipeline=_pipeline(library, sources, there),
        place=place.name if adapter.bare else None,
        library=library,
        loaders=loaders,
        words=named(adapter.dialect).words,
        sources=tuple(map(_source, sources)),
        method=method["name"] if isinstance(method.get("name"), str) else None,
        default=method.get("default") is True,
        options=_table(method.get("options")),
        settings=_table(record.get("settings")),
        report=report if report is not None else _table(record.get("report")),
        versions={k: v for k, v in _table(record.get("versions")).items() if isinstance(v, str)},
        masks=tasks_in(place) if os.path.isdir(place) else (),
    )


def _loaders(adapter: Adapter) -> tuple[str, ...]:
    """The consumers that load it as it is meant, of those that a card has lines for.

    By `check`, not by format: diffusers reads kohya's pairs and refuses its LoHa.
    """
    try:
        facts = facts_of(adapter)
    except LoramergeError:
        return ()
    widest = vllm_rank(adapter.rank)  # the card says this option too
    return tuple(name for name in LOADERS if not find(name).findings(facts, widest))


def _pipeline(library: str | None, sources: Sequence[Mapping[str, Any]], base: Listing | None) -> str | None:
    """The task, where no config says it: as the cards of its sources agree; for diffusers, the base's."""
    if library == "mlx":
        return "text-generation"
    return _agreed(sources, "pipeline") or (base.pipeline if base and library == "diffusers" else None)


def _source(value: Mapping[str, Any]) -> CardSource:
    """A source as recorded; of the Hub, its licence is asked for where the record does not say it."""
    hub, commit, weight = value.get("hub"), value.get("revision"), value.get("weight")
    marks = {name: mark for name, mark in _table(value.get("sha256")).items() if isinstance(mark, str)}
    weights = next((mark for name, mark in marks.items() if not name.endswith(".json")), None)
    hub = hub if isinstance(hub, str) else None
    commit = commit if isinstance(commit, str) and COMMIT.fullmatch(commit) else None
    licence = value.get("licence") if isinstance(value.get("licence"), str) else None
    if licence is None and hub is not None:
        licence = _licence_of(hub, commit)
    if isinstance(weight, dict):
        shown = f"{weight.get('from')} to {weight.get('to')} over depth"
    else:
        shown = f"{weight:g}" if isinstance(weight, int | float) else "–"
    return CardSource(str(value.get("name")), shown, hub, commit, weights, licence)


def _agreed(sources: Sequence[Mapping[str, Any]], what: str) -> str | None:
    """What the cards of all sources on the Hub that say it agree on: their base, their task."""
    places = {(s["hub"], s.get("revision")) for s in sources if isinstance(s.get("hub"), str)}
    found = {value for place in places if (said := _said(*place)) and (value := getattr(said, what))}
    return found.pop() if len(found) == 1 else None


def _said(hub: str, commit: object = None) -> Listing | None:
    """What a repository says; None if it cannot be asked, which the card then leaves open."""
    pinned = commit if isinstance(commit, str) and COMMIT.fullmatch(commit) else None
    try:
        return ask(HubName(parse(f"hf://{hub}").repo, pinned))
    except LoramergeError:
        return None


def _licence_of(hub: str, commit: str | None) -> str | None:
    found = _said(hub, commit)
    return found.licence if found else None


def _files(place: Path, adapter: Adapter) -> tuple[dict[str, Path | bytes], list[str]]:
    """Path there -> file here; and what lies in the folder but is no part of the adapter.

    Raises:
        SourceError: the masks in it are malformed.
    """
    if not os.path.isdir(place):
        return {place.name: place}, []
    # Nothing else goes: a training folder also holds optimizers, logs and .env.
    read = {path.name for path in adapter.provenance.files}
    masks = {PLACE, ROUTER_PLACE} if tasks_in(place) else set()
    found = _listed(place)
    own = {name for name in found if name in ADAPTER_FILES | read | masks and (place / name).is_file()}
    return {name: place / name for name in sorted(own)}, [name for name in found if name not in own]


def _aside(names: Sequence[str]) -> str:
    be, was = ("is", "was") if len(names) == 1 else ("are", "were")
    return f"{told(names, 8)} {be} no part of the adapter, and {was} not sent"


def _listed(place: Path) -> list[str]:
    """What lies in a folder, and in its folder of masks."""
    names = sorted(name for name in os.listdir(place) if not name.startswith("."))
    folder = os.path.dirname(PLACE)
    if folder not in names or not (place / folder).is_dir():
        return names
    inside = sorted(os.listdir(place / folder))
    return [name for name in names if name != folder] + [f"{folder}/{name}" for name in inside]


def _here(place: Path) -> Path:
    """What is pushed lies here: a name of the Hub is no source for it."""
    if not os.path.lexists(place):
        shown = printable(place, 1000)
        raise SourceError(f"{shown} does not exist: push takes a folder or a file.{nearby(place)}")
    return place


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
