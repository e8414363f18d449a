"""The folder of a routed bundle: which files are in it, and how one is told from an adapter.

task_0 … task_N        PEFT folders of one rank and one set of modules
router.safetensors     the tensors of the gates, and where the units of each expert begin
loramerge.json         its kind, its gate, its experts
README.md              the lines that load it
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from loramerge.adapters.late import late
from loramerge.errors import LoramergeError
from loramerge.formats.files.json import read_object
from loramerge.formats.output import RECORD
from loramerge.formats.peft.names import WEIGHTS
from loramerge.formats.peft.read import CONFIG

KIND = "bundle"
ROUTER = "router.safetensors"
README = "README.md"
TASK = "task_"
OWN = late(rf"{TASK}\d+/({CONFIG}|{WEIGHTS}|{README})|{ROUTER}|{RECORD}|{README}")


def task(number: int) -> str:
    """The folder of an expert, as PEFT calls its adapter."""
    return f"{TASK}{number}"


def is_bundle(path: object) -> bool:
    """Whether a folder says that it is a bundle."""
    return record_of(path) is not None


def record_of(path: object) -> dict[str, Any] | None:
    """What the folder of a bundle says of itself; None where it is none, or cannot be read as one."""
    if not isinstance(path, str | Path):
        return None
    place = Path(path) / RECORD
    try:
        if not os.path.isfile(place):
            return None
        said = read_object(place, str(place))
    except (LoramergeError, OSError, ValueError):  # whoever needs the record says what is wrong with it
        return None
    return said if said.get("kind") == KIND else None


class Files(Collection[str]):
    """The paths that a bundle may have below its folder, however many experts are in it."""

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and OWN.fullmatch(path) is not None

    def __iter__(self) -> Iterator[str]:
        return iter((ROUTER, RECORD, README))

    def __len__(self) -> int:
        return 3
