"""Whether OUT may be written: asked before any work, so that the user hears a refusal at once."""

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.reading import files_read
from loramerge.errors import OutputError, UsageError, printable, say

RECORD = "loramerge.json"  # how a merge or a bundle was made
ROUTER = "router.safetensors"  # beside the record: a bundle, whose adapters lie in folders of it
ADAPTER_FILES = frozenset(
    {
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapters.safetensors",
        "pytorch_lora_weights.safetensors",
        RECORD,
        "loramerge.extras",
        "README.md",
    }
)


MODEL = ("model", "diffusion_pytorch_model", "pytorch_model", "config.json", "model_index.json")  # begin so


def a_path(value: object, setting: str) -> Path:
    """A place to write to. Raises UsageError: nothing can be written there."""
    if not isinstance(value, str | Path) or not str(value):
        raise UsageError(f"{setting}={printable(repr(value), 60)} is not a path.")
    return Path(value)


def check_output(out: Path, overwrite: bool, folder: bool, own: Collection[str] = ()) -> None:
    """Refuse an OUT that cannot be written, or that would be destroyed by writing it.

    Even with `overwrite`, a folder that holds anything but an adapter's own files is left alone.
    Nothing is created, not even missing parents.

    Args:
        own: the files of a model, by their paths below OUT, if that is what will be written.

    Raises:
        OutputError: what stands in the way, and what to do.
    """
    name = printable(out, limit=1000)
    try:
        real = real_path(out)
        _check_parent(name, real.parent)
        if folder:
            _check_folder(name, real, overwrite, own)
        else:
            _check_file(name, real, overwrite)
        check_apart(out)
    except OSError as error:
        reason = f"{name} cannot be written: {error.strerror}."
        raise OutputError(f"{reason} Choose another {say('out')}.") from error
    except ValueError as error:
        raise OutputError(f"{name} cannot be the name of a file. Choose another {say('out')}.") from error


class Read(NamedTuple):
    """A file or folder that is read.

    Args:
        name: for messages.   how: `merged` or `read`.
        whole: its folder is the adapter, whatever else lies there.
    """

    path: str
    name: str
    how: str = "read"
    whole: bool = False


def check_apart(out: Path, adapters: Iterable[Adapter] = (), others: Iterable[Path] = ()) -> None:
    """Refuse an OUT that is something that is read, holds it, or lies in its folder; through links too.

    Read is what was opened for this request (`reading`), what the adapters were loaded from, and the others,
    which may be folders. A folder that merely holds adapters is no source.

    Raises:
        OutputError: it does; `overwrite` changes nothing in that.
    """
    try:
        real = os.path.realpath(out)
    except ValueError:  # `check_output` says so
        return
    files = [(os.fspath(path), adapter) for adapter in adapters for path in adapter.provenance.files]
    read = {path: Read(path, adapter.name, "merged", not adapter.bare) for path, adapter in files}
    for path in map(os.fspath, (*files_read(), *others)):
        read.setdefault(path, Read(path, path))
    there = {each: how for path, how in (*_members(real), *_above(real)) if (each := _inode(path))}
    for home, held in _by_folder(read.values()).items():
        if found := _meets(real, there, home, held):
            how, file = found
            name, shown = printable(out, limit=1000), printable(file.name, limit=1000)
            raise OutputError(f"{name} {how} {shown}, which is {file.how}. Choose another {say('out')}.")


def _by_folder(read: Iterable[Read]) -> dict[str, list[Read]]:
    """Real folder -> what lies there; of a link both the link and the file."""
    found = defaultdict[str, list[Read]](list)
    for each in read:
        found[os.path.dirname(each.path)].append(each)
        if os.path.islink(each.path):
            target = os.path.realpath(each.path)
            found[os.path.dirname(target)].append(each._replace(path=target))
    real = defaultdict[str, list[Read]](list)
    for folder, files in found.items():
        real[os.path.realpath(folder)] += files
    return real


def _members(folder: str) -> list[tuple[str, str]]:
    """A path, and what lies in it if it is a folder: hard links, or files by another name of the folder."""
    try:
        return [*((f"{folder}/{name}", "holds") for name in os.listdir(folder)), (folder, "is")]
    except OSError:
        return [(folder, "is")]


def _above(path: str) -> list[tuple[str, str]]:
    """The folders that a path lies in; mounts give them other names, and disks where case does not count."""
    return [(str(parent), "lies in") for parent in Path(path).parents]


def _meets(
    real: str, there: Mapping[tuple[int, int], str], home: str, files: Sequence[Read]
) -> tuple[str, Read] | None:
    """What OUT has to do with files in one folder, and with which; None if nothing.

    Args:
        there: what lies at OUT, and how it would be told.
    """
    for file in files:
        place = f"{home.rstrip('/')}/{os.path.basename(file.path)}"
        if place == real:
            return "is", file
        if _below(real, place):
            return "lies in", file
    if _below(home, real):
        own = next((file for file in files if os.path.basename(file.path) in ADAPTER_FILES), None)
        return ("is", own) if own and home == real else ("holds", files[0])
    for file in files:
        if (inode := _inode(file.path)) and inode in there:
            return there[inode], file
    for root in (home, os.path.dirname(home)):
        below = _below(real, root) or there.get(_inode(root) or (0, 0)) == "lies in"
        owner = _owner(root, home, files) if below else None
        if owner is not None:
            return "lies in the folder of", owner
    return None


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _below(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def _owner(root: str, home: str, files: Sequence[Read]) -> Read | None:
    """The first of these files in `home` by which `root` is the folder of a model, adapter or bundle."""
    if all(os.path.exists(f"{root}/{name}") for name in (RECORD, ROUTER)):  # a bundle is whole
        return files[0]
    marks = ("config.json", "model_index.json") if root == home else ("model_index.json",)
    begins = MODEL if any(os.path.exists(f"{root}/{mark}") for mark in marks) else ()
    adapter = root == home and os.path.exists(f"{root}/adapter_config.json")
    for file in files:
        name = os.path.basename(file.path)
        own = name in ADAPTER_FILES and root == home and (adapter or file.whole)
        if own or name.startswith(begins):
            return file
    return None


def real_path(out: Path) -> Path:
    """OUT with its symlinks followed, so that a linked OUT is written through."""
    return Path(os.path.realpath(out))


def _check_parent(name: str, parent: Path) -> None:
    nearest = parent
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        raise OutputError(
            f"{name} cannot be written: {_shown(nearest)} is not a folder. Choose another {say('out')}."
        )
    if nearest != parent:
        raise OutputError(
            f"{name} cannot be written: the folder {_shown(parent)} does not exist."
            f" Create it first, or choose another {say('out')}."
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"{name} cannot be written: you may not write in the folder {_shown(parent)}. "
            f"Choose another {say('out')}."
        )


def _check_file(name: str, real: Path, overwrite: bool) -> None:
    if real.is_dir():
        raise OutputError(f"{name} is a folder, and a file is to be written. Choose another {say('out')}.")
    if not os.path.lexists(real):
        return
    if not real.is_file():
        raise OutputError(f"{name} is not a regular file. Choose another {say('out')}.")
    if real.stat().st_size and not overwrite:
        raise OutputError(
            f"{name} exists. Choose another {say('out')}, or replace it with {say('overwrite', True)}."
        )


def _check_folder(name: str, real: Path, overwrite: bool, own: Collection[str]) -> None:
    if not os.path.lexists(real):
        return
    if not real.is_dir():
        raise OutputError(f"{name} is a file, and a folder is to be written. Choose another {say('out')}.")
    entries = sorted(os.scandir(real), key=lambda entry: entry.name)
    if own:
        below = sorted(str(path.relative_to(real)) for path in real.rglob("*") if not path.is_dir())
        foreign = [path for path in below if path not in own]
    else:
        foreign = [
            e.name for e in entries if (e.name not in ADAPTER_FILES or e.is_dir()) and not _is_masks(e)
        ]
    if foreign:
        what = "the model" if own else "an adapter"
        raise OutputError(
            f"Writing to {name} would delete {_some(foreign)}, which is not part of {what}."
            f" Choose another {say('out')}, or move it away."
        )
    if entries and not overwrite:
        raise OutputError(
            f"{name} is not empty. Choose another {say('out')}, or replace it with {say('overwrite', True)}."
        )


def _is_masks(entry: os.DirEntry[str]) -> bool:
    """The folder of masks that a merge comes with, and nothing more in it."""
    own = {"masks.safetensors", "router.safetensors"}
    return entry.name == "masks" and entry.is_dir() and own.issuperset(os.listdir(entry))


def _some(names: list[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _shown(path: Path) -> str:
    return printable(path, limit=1000)
