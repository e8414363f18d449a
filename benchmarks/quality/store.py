"""Results as files: each is named by a hash of what it depends on, so that a run goes on where it ended."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import loramerge

MEANING = ("arrays", "algorithms", "merge")  # rooms of the package that decide what a merge is


def key(**facts: Any) -> str:
    """A name for what has these facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


@cache
def code(*places: Path) -> str:
    """A hash of these sources: files, and all in folders."""
    mark = hashlib.sha256()
    for place in places:
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            mark.update(path.read_bytes())
    return mark.hexdigest()[:16]


def merging() -> str:
    """A hash of the code that merges."""
    return _rooms(*MEANING)


def routing() -> str:
    """A hash of the code that routes."""
    return _rooms("arrays", "routing")


def _rooms(*names: str) -> str:
    package = Path(loramerge.__file__).parent
    return code(*(package / name for name in names))


def training() -> str:
    """A hash of the code that trains."""
    return code(*(Path(__file__).with_name(f"{name}.py") for name in ("train", "model", "stack", "domains")))


def measuring() -> str:
    """A hash of the code that measures a merge."""
    return code(*(Path(__file__).with_name(f"{name}.py") for name in ("score", "forward", "merges")))


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What the file holds; made and written whole if it is not there."""
    if path.exists():
        return json.loads(path.read_text())
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(made))
    part.replace(path)
    return made
