"""What a mistyped path may have meant."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from loramerge.errors import printable

NEAR = 0.75  # likeness from which a name may have been meant
MOST = 1000  # names in a folder that are looked at


def nearby(path: Path) -> str:
    """What is there and has a name like that of a path which is not, as the end of a sentence.

    >>> nearby(Path("fixtures/a.safetensor"))
    ' Did you mean fixtures/a.safetensors?'
    """
    there = path.parent
    while not os.path.isdir(there) and there != there.parent:  # the first part that is not there
        path, there = there, there.parent
    try:
        with os.scandir(there) as entries:  # every source of thousands may be mistyped
            names = [entry.name for entry in islice(entries, MOST) if entry.name != path.name]  # a dead link
    except OSError:
        return ""
    likeness = {name: _like(path.name, name) for name in names if not name.startswith(".")}
    least = max(NEAR, max(likeness.values(), default=0.0) - 0.05)
    found = sorted(name for name, like in likeness.items() if like >= least)[:2]
    return f" Did you mean {' or '.join(printable(there / name, 1000) for name in found)}?" if found else ""


def _like(typed: str, name: str) -> float:
    """How like two names are, from 0 to 1."""
    from difflib import SequenceMatcher  # for those who mistype

    found = SequenceMatcher(None, name, typed)
    if min(found.real_quick_ratio(), found.quick_ratio()) < NEAR:  # bounds that cost little
        return 0.0
    return found.ratio()
