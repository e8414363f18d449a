"""The folder of a routed bundle: which files are in it, and how one is told from an adapter.

task_0 … task_N        PEFT folders of one rank and one set of modules
router.safetensors     the tensors of the gates, and where the units of each expert begin
loramerge.json         its kind, its gate, its experts
README.md              the lines that load it
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from loramerge.adapters.late import late
from loramerge.errors import IncompatibleError, LoramergeError, printable, say, spoken
from loramerge.formats.files.atomic import put_back
from loramerge.formats.files.destination import RECORD, ROUTER
from loramerge.formats.files.json import read_object
from loramerge.formats.peft.names import WEIGHTS
from loramerge.formats.peft.read import CONFIG

KIND = "bundle"
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
    """What the folder of a bundle says of itself; None if it is not one.

    Raises:
        SourceError: there is a router, and beside it a record that cannot be read.
    """
    if not isinstance(path, str | Path):
        return None
    place = Path(path) / RECORD
    try:
        put_back(Path(path))
        if not os.path.isfile(place):
            return None
        said = read_object(place, str(place))
    except (LoramergeError, OSError, ValueError):  # whoever needs the record says what is wrong with it
        if os.path.isfile(place.with_name(ROUTER)):
            raise  # without its record it would be a folder of adapters, all of one weight
        return None
    return said if said.get("kind") == KIND else None


def folders(place: str, record: Mapping[str, Any]) -> list[str]:
    """Where its adapters lie."""
    experts = record.get("experts")
    return [str(Path(place) / task(e)) for e in range(len(experts) if isinstance(experts, list) else 0)]


def refuse_bundle(path: Path, name: str) -> None:
    """Refuse what is read as one adapter and is a bundle, or the router of one.

    Raises:
        IncompatibleError: it is.
    """
    place = path.parent if path.name == ROUTER else path
    if not os.path.isfile(place / ROUTER) or (record := record_of(place)) is None:
        return
    shown = printable(name)
    if place == path:
        raise IncompatibleError(instead(shown, record))
    raise IncompatibleError(
        f"{shown} is the router of a bundle, and no adapter: name the bundle, {printable(place)}, or an "
        f"adapter in it, such as {printable(place / task(0))}."
    )


def instead(shown: str, record: Mapping[str, Any]) -> str:
    """That a bundle is no adapter, and what to do, in a sentence."""
    said = record.get("gate")
    gate = said.get("name") if isinstance(said, dict) and not record.get("gates") else "of each module"
    one = f"or name an adapter in it, such as {shown}/{task(0)}"
    merge = "`loramerge combine {}`" if spoken() == "shell" else 'lm.combine(["{}"])'
    if gate == "static" or record.get("weights"):
        head = f"{shown} is a routed bundle whose adapters get the same weights for every token"
        return f"{head}: {merge.format(shown)} makes one adapter of it first, {one}."
    if gate in ("table", "task"):
        head = f"{shown} is a routed bundle whose weights are those of a row"
        how = f"{merge.format(shown)} with {say('row', 'NAME')}"
        return f"{head}: {how} makes one adapter of it first, {one}."
    return (
        f"{shown} is a routed bundle whose gate {printable(gate)} weighs its adapters for each input, so "
        f"that no single adapter does the same. `loramerge route {shown} --gate static -o OTHER` makes one "
        f"that can be merged; {one}."
    )


class Files(Collection[str]):
    """The paths that a bundle may have below its folder, however many experts are in it."""

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and OWN.fullmatch(path) is not None

    def __iter__(self) -> Iterator[str]:
        return iter((ROUTER, RECORD, README))

    def __len__(self) -> int:
        return 3
