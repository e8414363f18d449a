"""One adapter of several in a file: `FILE#name`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from loramerge.adapters.adapter import Tensor
from loramerge.adapters.late import late
from loramerge.errors import SourceError, printable
from loramerge.formats.files.safetensors import File
from loramerge.formats.peft.names import PREFIX, parse

TASK = late(r"(?P<stem>.+\.lora_(?:down|up)_[QV])\.(?P<name>\w+)\.weight", re.DOTALL)  # of Omni-AVSR
HEAD = late(r"(?P<start>.+\.modules_to_save)\.(?P<name>[^.]+)\.(?P<end>.+)", re.DOTALL)


def split(path: Path) -> tuple[Path, str | None]:
    """A file, and the name of the adapter in it that is meant; None if the whole is.

    >>> split(Path("reward.pth#help"))
    (PosixPath('reward.pth'), 'help')
    """
    stem, mark, name = str(path).rpartition("#")
    if os.path.lexists(path) or not mark or not stem or not name:
        return path, None
    return Path(stem), name


def picked(file: File, name: str) -> File:
    """The tensors of this adapter under the names that they would have alone, and those that all share.

    Raises:
        SourceError: the file has none of this name.
    """
    owners = {key: _owner(key) for key in file.tensors}
    names = sorted({owner for owner, _ in owners.values() if owner is not None})
    if name not in names:
        some = ", ".join(map(printable, names)) or "one adapter without a name"
        raise SourceError(f"{printable(file.name)} holds no adapter {printable(name)}; it has {some}.")
    kept = {short: file.tensors[key] for key, (owner, short) in owners.items() if owner in (name, None)}
    return replace(file, tensors=kept)


def _owner(key: str) -> tuple[str | None, str]:
    """(the adapter that a tensor belongs to, None if all share it; its key without that name)."""
    for pattern, short in ((TASK, "{stem}.weight"), (HEAD, "{start}.{end}")):
        if found := pattern.fullmatch(key):
            return found["name"], short.format(**found.groupdict())
    if (part := parse(key)) and part.adapter:
        named = f".{part.adapter}"
        return part.adapter, key.replace(f"{named}.", ".") if f"{named}." in key else key.removesuffix(named)
    return None, key


def called(file: File, ends: Mapping[str, str]) -> tuple[File, list[str]]:
    """The factors with these endings under PEFT's names, and a sentence about the rest.

    Raises:
        SourceError: no key ends so.
    """
    kept = dict[str, Tensor]()
    for side, end in (("down", ends["down"]), ("up", ends["up"])):
        found = {key: tensor for key, tensor in file.tensors.items() if key.endswith(end) and key != end}
        if not found:
            raise SourceError(f"No key of {printable(file.name)} ends in {printable(end)}.")
        last = "lora_A.weight" if side == "down" else "lora_B.weight"
        kept |= {
            f"{PREFIX}{key.removesuffix(end).rstrip('.')}.{last}": tensor for key, tensor in found.items()
        }
    others = len(file.tensors) - len(kept)
    left = [f"{others} tensors with other names than those that were given are left out"] if others else []
    return replace(file, tensors=kept), left
