"""An adapter of the Hub brought to this disk: the files that it needs, at one commit."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loramerge.errors import IncompatibleError, SourceError, printable
from loramerge.hub.client import Listing, api, ask
from loramerge.hub.failures import Unreachable, explained
from loramerge.hub.names import FILES, HubName
from loramerge.hub.progress import Counter

CONFIG, CARD, RECORD = "adapter_config.json", "README.md", "loramerge.json"
WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
DIGEST = re.compile(r"[0-9a-f]{64}")
WHOLE_MODELS = ("model", "pytorch_model", "diffusion_pytorch_model", "consolidated", "tf_model")


@dataclass(frozen=True)
class Choice:
    """What is needed of a repository.

    Args:
        place: what is the adapter, a folder or a file.   weights: the file of its tensors.
        beside: small files that say what they are.
    """

    place: str
    weights: str
    beside: tuple[str, ...] = ()


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


def fetch(name: HubName, allow_pickle: bool = False, record: bool = False) -> Snapshot:
    """Bring an adapter here, and its card; what is in the cache at that commit is not downloaded again.

    A name with a commit that is in the cache makes no request; where the Hub cannot be reached, the cache is
    asked for the commit that the revision had.

    Args:
        record: bring loramerge.json too, if there is one.

    Raises:
        SourceError: as `ask`; or it is no adapter, or several.   IncompatibleError: pickles only.
    """
    if name.is_pinned and not record and (found := cached(name, allow_pickle)):
        return found
    try:
        listing = ask(name)
    except Unreachable:
        found = cached(name, allow_pickle)
        if found is None:
            raise
        return replace(found, note=_unasked(found)) if not offline() else found
    choice = chosen(name, listing, allow_pickle)
    more = (CARD, *([_below(choice.place, RECORD)] if record else []))
    wanted = [*choice.beside, choice.weights, *(file for file in more if file in listing.files)]
    root = download(name, listing.commit, wanted)
    return Snapshot(replace(name, path=choice.place), listing.commit, root, choice.place)


def chosen(name: HubName, listing: Listing, allow_pickle: bool = False) -> Choice:
    """Which files of a repository are the adapter that is named.

    Raises:
        SourceError: none are, or several could be; the message names them.
        IncompatibleError: its weights are a pickle, and these are not allowed.
    """
    if name.is_file:
        return _one_file(name, name.path, listing)
    base, inside = name.path, _inside(name.path, listing.files)
    if not inside:
        raise SourceError(f"{name.repo} has no folder {printable(base)}{_others(name, listing)}.")
    if CONFIG in inside:
        return Choice(base, _below(base, _weights(name, inside, allow_pickle)), (_below(base, CONFIG),))
    files = sorted(f for f in inside if f.endswith(".safetensors") and "/" not in f)
    if not files or "config.json" in inside or files[0].split("-")[0].split(".")[0] in WHOLE_MODELS:
        raise _no_adapter(name, listing, inside)
    if len(files) > 1:
        raise SourceError(
            f"{name} has no {CONFIG} and {len(files)} files of weights ({_some(files)}): name one, such as "
            f"{replace(name, path=_below(base, files[0]))}"
        )
    return _one_file(name, _below(base, files[0]), listing)


def cached(name: HubName, allow_pickle: bool = False) -> Snapshot | None:
    """The adapter as it lies in the cache, whole; None if it does not. Asks nobody.

    A repository of one file is found by the name of its file only: the cache does not know whether there are
    others.
    """
    from huggingface_hub import try_to_load_from_cache

    probe = name.path if name.is_file else _below(name.path, CONFIG)
    found = try_to_load_from_cache(name.repo, probe, revision=name.revision)
    if not isinstance(found, str):
        return None
    root = Path(found[: -len(probe) - 1])
    place = root / name.path
    if not name.is_file and not any(
        (place / file).is_file() for file in (WEIGHTS, *([PICKLED] if allow_pickle else []))
    ):
        return None  # only its config was looked at
    return Snapshot(name, root.name, root, name.path)


def sha256_of(path: Path) -> str | None:
    """The SHA-256 that the Hub gave a large file of the cache; None for others.

    The client calls what it has downloaded by it, and compares nothing but the size.
    """
    name = path.resolve().name
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


def _one_file(name: HubName, path: str, listing: Listing) -> Choice:
    """One file of weights, and what may tell its alpha."""
    if path not in listing.files:
        raise SourceError(f"{name.repo} has no file {printable(path)}{_others(name, listing)}.")
    folder, stem = os.path.dirname(path), os.path.splitext(path)[0]
    rivals = [f for f in listing.files if os.path.dirname(f) == folder and f.endswith(FILES)]
    shared = rivals == [path] or path == _below(folder, WEIGHTS)  # else a config there may mean another file
    beside = (f"{stem}.json", *([_below(folder, CONFIG)] if shared else []))
    return Choice(path, path, tuple(file for file in beside if file in listing.files))


def _weights(name: HubName, inside: set[str], allow_pickle: bool) -> str:
    if WEIGHTS in inside:
        return WEIGHTS
    if PICKLED not in inside:
        raise SourceError(f"{name} has an {CONFIG} but no {WEIGHTS}: its upload is incomplete.")
    if not allow_pickle:
        raise IncompatibleError(
            f"{name} has its weights in a pickle only ({PICKLED}), which could run code when it is read. "
            "--allow-pickle (allow_pickle=True) reads its tensors without running anything."
        )
    return PICKLED


def _no_adapter(name: HubName, listing: Listing, inside: set[str]) -> SourceError:
    nested = sorted(os.path.dirname(file) for file in inside if file.endswith(f"/{CONFIG}"))
    if nested:
        first = replace(name, path=_below(name.path, nested[0]))
        return SourceError(f"{name} holds adapters in folders ({_some(nested)}): name one, such as {first}")
    if "config.json" in inside or any(f.endswith(FILES) and "/" not in f for f in inside):
        return SourceError(f"{name} has no {CONFIG}: it is a model, not an adapter.")
    return SourceError(
        f"{name} has no {CONFIG} and no .safetensors: it is no adapter{_others(name, listing)}."
    )


def _others(name: HubName, listing: Listing) -> str:
    """What else could be named in this repository."""
    files = sorted(f for f in listing.files if f.endswith((f"/{CONFIG}", ".safetensors")))
    places = list(dict.fromkeys(f.removesuffix(f"/{CONFIG}") for f in files if f.removesuffix(CONFIG)))
    places = [place for place in places if place != name.path]
    return f"; it has {_some(places)}" if places else ""


def _inside(base: str, files: frozenset[str]) -> set[str]:
    """The files below a folder, named from there."""
    return {
        file[len(base) + 1 :] if base else file for file in files if not base or file.startswith(f"{base}/")
    }


def _below(folder: str, file: str) -> str:
    return f"{folder}/{file}" if folder else file


def _some(names: list[str], count: int = 8) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(printable(name, 80) for name in names[:count]) + more


def _unasked(found: Snapshot) -> str:
    return f"the Hub could not be asked, so this is the commit {found.commit[:8]} that the cache has"
