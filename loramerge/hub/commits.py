"""Writing to the Hub: one repository, one commit, all of it or nothing."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loramerge.charts.facts import fields_html
from loramerge.errors import OutputError, UsageError, printable, say
from loramerge.hub.client import Listing, api, ask
from loramerge.hub.failures import LOGIN, explained, without_secrets
from loramerge.hub.fetch import CARD, offline
from loramerge.hub.names import REPOSITORY, REVISION, HubName

OURS = "<!-- written by loramerge push -->"  # a card with it may be written anew

LARGE = 10**6  # bytes of a file that is told of by itself
Watch = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Pushed:
    """What `push` has done; printing it gives the address.

    Args:
        repo: `org/name`.   commit: the 40 digits.   url: of the commit, or of the pull request.
        changed: whether there was anything new.   notes: sentences about it.
    """

    repo: str
    commit: str
    url: str
    changed: bool = True
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return printable(self.url)

    def _repr_html_(self) -> str:
        return fields_html(self)


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """The client shows a bar for what it sends, if that is wanted: on a terminal only."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    terminal = shown and sys.stderr is not None and sys.stderr.isatty()
    quiet = not are_progress_bars_disabled() and not terminal
    if quiet:
        disable_progress_bars()
    try:
        yield
    finally:
        if quiet:
            enable_progress_bars()


def destination(repo: str, revision: str | None = None, create_pr: bool = False) -> HubName:
    """Where to push, before anything is done: a sound name, and somebody logged in.

    Raises:
        UsageError: no name of a repository or a branch.   OutputError: offline, or nobody is logged in.
    """
    if not REPOSITORY.fullmatch(repo):
        raise UsageError(f"{printable(repo)} is not a repository on the Hub: its name must be org/name.")
    if revision is not None and not REVISION.fullmatch(revision):
        raise UsageError(f"{printable(revision)} is not the name of a branch.")
    if create_pr and revision not in (None, "main"):
        raise UsageError(
            f"A pull request is opened against main: drop {say('revision')}, or {say('create_pr', True)}."
        )
    from huggingface_hub import get_token

    if offline():
        raise OutputError(f"{repo} cannot be written to: HF_HUB_OFFLINE is set. Unset it to push.")
    if get_token() is None:
        raise OutputError(f"Pushing to {repo} needs a login: {LOGIN}.")
    return HubName(repo, revision)


def prepare(name: HubName, private: bool = False) -> Listing:
    """The repository, made if there is none (and its branch), as it is now.

    Raises:
        OutputError: it may not be written to, or is public although `private` is asked for.
    """
    client = api()
    with explained(name, writing=True):
        client.create_repo(name.repo, private=True if private else None, exist_ok=True)
        if name.revision not in (None, "main") and not name.revision.startswith("refs/"):
            client.create_branch(name.repo, branch=name.revision, exist_ok=True)
    now = ask(name)
    if private and now.private is False:
        raise OutputError(
            f"{name.repo} is there already, and public: nothing was sent. Make it private on its page, or "
            "push to another name."
        )
    return now


def kept_card(name: HubName, now: Listing) -> bool:
    """Whether the repository has a card that somebody else than loramerge wrote."""
    if CARD not in now.files:
        return False
    with explained(name, CARD):
        path = api().hf_hub_download(name.repo, CARD, revision=now.commit)
    return OURS not in Path(path).read_text(encoding="utf-8", errors="replace")


def send(
    name: HubName,
    files: Mapping[str, Path | bytes],
    parent: str,
    message: str,
    create_pr: bool = False,
    watch: Watch | None = None,
) -> Pushed:
    """One commit with these files (path there -> file here, or bytes) on top of `parent`.

    Args:
        watch: is given the files, and gives them back one by one: large ones are then sent one after the
            other, before the commit. None: the client shows bars of its own, on a terminal.

    Raises:
        OutputError: another commit came first, or the Hub refuses it; nothing is changed then.
    """
    from huggingface_hub import CommitOperationAdd

    operations = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=what) for path, what in files.items()]
    with explained(name, writing=True), _bars(watch is None), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for each in operations if watch is None else watch(operations):
            if (
                watch is not None
                and isinstance(each.path_or_fileobj, Path)
                and each.upload_info.size >= LARGE
            ):
                api().preupload_lfs_files(name.repo, [each], revision=name.revision, create_pr=create_pr)
        try:
            done = api().create_commit(
                name.repo,
                operations,
                commit_message=message,
                revision=name.revision,
                create_pr=create_pr,
                # of two pushes at once the second is told (412), and has changed nothing
                parent_commit=parent,
            )
        except ValueError as error:
            if "README.md" not in str(error):
                raise
            reason = printable(without_secrets(str(error)), 300)
            raise OutputError(f"The Hub does not accept the card: {reason}") from None
    notes = tuple(
        printable(without_secrets(str(each.message)), 300) for each in said if CARD in str(each.message)
    )
    url = done.pr_url or f"{done.repo_url}/commit/{done.oid}"
    return Pushed(name.repo, done.oid, url, done.oid != parent, notes)
