"""The licence that the card of an adapter names, without reading its YAML whole."""

from __future__ import annotations

import re
from pathlib import Path

from loramerge.adapters.late import late
from loramerge.adapters.original import read_text
from loramerge.errors import SourceError

LIMIT = 2**16  # of a card; what says the licence stands at its beginning
MATTER = late(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---", re.DOTALL)
FIELD = r"^{}:[ \t]*(?:\r?\n[ \t]*-[ \t]+)?[\"']?([A-Za-z0-9][\w .+-]{{0,60}}?)[\"']?[ \t]*(?:#.*)?\r?$"


def licence_in(card: Path) -> str | None:
    """`mit`, or `other (name)` where the card gives a name of its own; None where it says nothing.

    A card that cannot be read says nothing: a licence is told, and decides nothing of a merge.
    """
    try:
        text = read_text(card, card.name, LIMIT)[:LIMIT].decode("utf-8", "replace")
    except SourceError:
        return None
    matter = MATTER.match(text)
    found = _field("license", matter[1]) if matter else None
    if not matter or found is None or found.lower() != "other":
        return found
    named = _field("license_name", matter[1])
    return f"other ({named})" if named else found


def _field(name: str, matter: str) -> str | None:
    match = re.search(FIELD.format(name), matter, re.MULTILINE)
    return match[1].strip() if match else None
