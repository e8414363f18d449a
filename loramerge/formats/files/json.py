"""JSON from files that we do not trust: bounded, and any fault is a sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from loramerge.adapters.original import read_whole
from loramerge.errors import SourceError, printable
from loramerge.formats.files.strangers import HEAD, check_head

LIMIT = 16 * 2**20
MOST = 3_000_000  # values: some 100 bytes each


def read_object(path: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of at most 16 MiB.

    Raises:
        SourceError: absent, unreadable, too large, no JSON, or no object; the message calls it `name`.
    """
    text = read_whole(path, name, LIMIT)
    return parse_object(text, name)


def parse_object(text: bytes | str, name: str) -> dict[str, Any]:
    """The object that a JSON text holds.

    Raises:
        SourceError: the text is too large, no JSON, or no object.

    >>> parse_object('{"r": 8}', "adapter_config.json")
    {'r': 8}
    """
    if len(text) > LIMIT:
        raise SourceError(f"{printable(name)} has more than 16 MiB, so it is not an adapter config.")
    try:
        if _marks(text) > MOST:
            raise ValueError(f"it has more than {MOST} values")
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_bounded)
    except (ValueError, RecursionError) as error:
        check_head(text[:HEAD] if isinstance(text, bytes) else text[:HEAD].encode(), name)
        raise SourceError(f"{printable(name)} is not valid JSON: {printable(error)}.") from error
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a single value")
        raise SourceError(f"{printable(name)} holds {kind} where an object of settings was expected.")
    return value


def _marks(text: bytes | str) -> int:
    """No fewer than the values in it, which may take far more memory than the text."""
    if isinstance(text, bytes):
        return sum(map(text.count, (b",", b"[", b"{", b":")))
    return sum(map(text.count, (",", "[", "{", ":")))


def _bounded(digits: str) -> int:
    if len(digits) > 20:  # no size and no count has more, and float would refuse it later
        raise ValueError(f"{printable(digits, 24)} is too large")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):  # 1e999 is JSON, but what we write must be readable again
        raise ValueError(f"{digits} is too large")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")
