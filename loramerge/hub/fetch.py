"""An adapter of the Hub brought to this disk: the files that it needs, at one commit."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loramerge.errors import SourceError
from loramerge.hub.choice import CHECKPOINT, CONFIG, FOLDER_FILES, KNOWN, PICKLED, below, chosen
from loramerge.hub.client import api, ask
from loramerge.hub.failures import Unreachable, explained
from loramerge.hub.names import HubName
from loramerge.hub.progress import Counter

CARD, RECORD = "README.md", "loramerge.json"
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Snapshot:
    """An adapter of the Hub on this disk.

    Args:
        name: with the path of its file, if it is one.   commit: the 40 digits.
        root: the folder of the repository's files here.   place: of the adapter, below it.
        note: a sentence, if the Hub could not be asked.
    """

    name: HubName
    commit: str
    root: Path
    place: str
    note: str | None = None

    @property
    def path(self) -> Path:
        """The folder or the file of the adapter."""
        return self.root / self.place

    @property
    def card(self) -> Path:
        """Where its card is, if it has one."""
        return self.root / CARD


def fetch(name: HubName, allow_pickle: bool = False, also: Sequence[str] = ()) -> Snapshot:
    """Bring an adapter here, and its card; what is in the cache at that commit is not downloaded again.

    A name with a commit that is in the cache makes no request; where the Hub cannot be reached, the cache is
    asked for the commit that the revision had.

    Args:
        also: files below its place to bring too, if they are there.

    Raises:
        SourceError: as `ask`; or it is no adapter, or several.   IncompatibleError: pickles only.
    """
    if name.is_pinned and not also and (found := cached(name, allow_pickle)):
        return found
    try:
        listing = ask(name)
    except Unreachable:
        found = cached(name, allow_pickle)
        if found is None:
            raise
        return replace(found, note=_unasked(found)) if not offline() else found
    choice = chosen(name, listing, allow_pickle)
    more = (CARD, *(below(choice.place, file) for file in also))
    wanted = [*choice.beside, choice.weights, *(file for file in more if file in listing.files)]
    root = download(name, listing.commit, wanted)
    return Snapshot(replace(name, path=choice.place), listing.commit, root, choice.place)


def cached(name: HubName, allow_pickle: bool = False) -> Snapshot | None:
    """The adapter as it lies in the cache, whole; None if it does not. Asks nobody.

    A repository of one file is found by the name of its file only: the cache does not know whether there are
    others.
    """
    probes = [name.path] if name.is_file else [below(name.path, file) for file in (CONFIG, *FOLDER_FILES)]
    root = next((root for probe in probes if (root := _cached_root(name, probe))), None)
    if root is None or (not name.is_file and not _has_weights(root / name.path, allow_pickle)):
        return None  # or only its config was looked at
    return Snapshot(name, root.name, root, name.path)


def _cached_root(name: HubName, file: str) -> Path | None:
    """The folder of a commit in the cache, if it holds this file."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name.repo, file, revision=name.revision)
    return Path(found[: -len(file) - 1]) if isinstance(found, str) else None


def _has_weights(place: Path, allow_pickle: bool) -> bool:
    """Whether the weights of a folder are here, rather than one of the checkpoints beside them."""
    known = [place / file for file in (*KNOWN, *([PICKLED] if allow_pickle else []))]
    others = [path for path in place.glob("*.safetensors") if not CHECKPOINT.fullmatch(path.name)]
    return any(path.is_file() for path in [*known, *others])  # a link may lead to what was removed


def sha256_of(path: Path) -> str | None:
    """The SHA-256 that the Hub gave a large file of the cache; None for others.

    The client calls what it has downloaded by it, and compares nothing but the size. Only the first link has
    that name: newer clients keep the bytes of xet further on, under xet's own hash of as many digits.
    """
    try:
        name = os.path.basename(os.readlink(path))
    except OSError:  # no link
        return None
    return name if DIGEST.fullmatch(name) else None


def offline() -> bool:
    """Whether the user has said that the Hub is not to be asked."""
    from huggingface_hub import is_offline_mode

    return bool(is_offline_mode())


def download(name: HubName, commit: str, files: Sequence[str]) -> Path:
    """The folder in the cache that holds these files.

    The first is asked for by the name that the user gave, so that the cache remembers which commit it was.

    Raises:
        SourceError: one cannot be had, or the repository has got another commit meanwhile.
    """
    root = None
    for file in files:
        revision = (name.revision or "main") if root is None else commit
        with explained(name, file):
            found = api().hf_hub_download(name.repo, file, revision=revision, tqdm_class=Counter)
        root = root or Path(found[: -len(file) - 1])
    assert root is not None, "an adapter has a file"
    if root.name != commit:
        raise SourceError(f"{name} was changed while it was read: run it again.")
    return root


def _unasked(found: Snapshot) -> str:
    return f"the Hub could not be asked, so this is the commit {found.commit[:8]} that the cache has"
