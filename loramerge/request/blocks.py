"""Strengths of blocks, as makers of images write them.

1,0,0.5,…                       one for each block of the model, as sd-webui-lora-block-weight counts them
lbw=1,0,…    <lora:NAME:0.8:lbw=1,0,…>
double 3-7, single              these blocks alone
IN04-IN08=0.5, BASE=0           another strength for these; the rest stays as it is
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from loramerge.adapters.late import late
from loramerge.errors import printable
from loramerge.request.kinds import Kind, Unfit, factor

NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
PIECE = late(
    rf"(?P<list>[A-Za-z_]*)[ .]*(?:(?P<low>\d{{1,4}})(?: *- *(?P<word>[A-Za-z_]*)(?P<high>\d{{1,4}}))?)?"
    rf"(?: *= *(?P<value>{NUMBER}))?"
)
TAG = late(r"<(?:lora|lyco):(?P<name>[^:>]+)(?P<rest>[^>]*)>")
NO_LISTS = ("nan", "inf", "infinity")  # words for numbers that are no strength
ANOTHER = late(r"[,;][ \w-]*$")  # a block behind others, and no end of the name of a file
MOST = 10_000  # characters
WORDS = "a list of strengths such as 1,0,0.5, or blocks such as 'double 3-7' or 'IN04=0.5'"


class Named(NamedTuple):
    """Blocks `low` to `high` of a list, or all of it; without a `value` they are chosen."""

    list: str
    low: int | None
    high: int | None
    value: float | None


class Strengths(NamedTuple):
    """What a text says: numbers in the order of the blocks, or blocks by name; `whole` multiplies all."""

    values: tuple[float, ...] = ()
    named: tuple[Named, ...] = ()
    whole: float = 1.0

    @property
    def chosen(self) -> bool:
        """Whether blocks are only chosen, so that all others are left out."""
        return bool(self.named) and all(each.value is None for each in self.named)


def strengths(text: str) -> Strengths:
    """What a text says. Raises Unfit.

    >>> strengths("lbw=1,0,.5").values
    (1.0, 0.0, 0.5)
    >>> strengths("double 3-7, 12").named[1]
    Named(list='double', low=12, high=12, value=None)
    """
    if len(text) > MOST:
        raise Unfit(f"has more than {MOST} characters")
    if tag := TAG.fullmatch(text.strip()):
        return _tagged(tag["rest"])
    said = re.split(r"[,;]", text.strip().removeprefix("lbw="))
    pieces = [piece.strip() for piece in said if piece.strip()]
    if pieces and all(re.fullmatch(NUMBER, piece) for piece in pieces) and len(pieces) > 1:
        return Strengths(tuple(factor(float(piece)) for piece in pieces))
    named: list[Named] = []
    for piece in pieces:
        named.append(_named(piece, named[-1].list if named else ""))
    if not named:
        raise Unfit(f"is not {WORDS}")
    if len({each.value is None for each in named}) > 1:
        raise Unfit("gives some blocks a strength and others none")
    return Strengths(named=tuple(named))


def _named(piece: str, before: str) -> Named:
    found = PIECE.fullmatch(piece)
    if found is None or not (found["list"] or found["low"]) or found["list"].lower() in NO_LISTS:
        raise Unfit(f"has {printable(repr(piece), 60)}, which is not {WORDS}")
    if found["word"] and found["word"] != found["list"]:
        raise Unfit(f"has {printable(repr(piece), 60)}, which goes from one list of blocks to another")
    low = None if found["low"] is None else int(found["low"])
    high = low if found["high"] is None else int(found["high"])
    if low is not None and high is not None and high < low:
        raise Unfit(f"has {printable(repr(piece), 60)}, whose end is before its beginning")
    value = None if found["value"] is None else factor(float(found["value"]))
    return Named(found["list"] or before, low, high, value)


def _tagged(rest: str) -> Strengths:
    """`:0.8:lbw=1,0,…`, what stands behind the name in a prompt."""
    whole, said = 1.0, None
    for part in filter(None, rest.split(":")):
        if part.startswith("lbw="):
            said = strengths(part)
        elif re.fullmatch(NUMBER, part):
            whole = factor(float(part))
        else:
            raise Unfit(f"has {printable(repr(part), 60)}, which means something while an image is made only")
    if said is None:
        raise Unfit("has no lbw=")
    return Strengths(said.values, said.named, whole)


class Blocks(Kind):
    """Strengths of blocks for all sources, or {source: strengths}."""

    def fit(self, value: Any) -> str | dict[str, str]:
        if isinstance(value, Mapping):
            return {str(source): _text(each) for source, each in value.items()}
        if isinstance(value, str):
            source, text = split(value)
            return {source: _text(text)} if source else _text(text)
        if isinstance(value, Sequence) and value and not isinstance(value, bytes):
            return _text(",".join(f"{factor(each):.17g}" for each in value))
        raise Unfit(f"is not {WORDS}, or a table of source and that")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Unfit(f"has {printable(repr(value), 60)}, which is not text")
    strengths(value)
    return value


def split(text: str) -> tuple[str, str]:
    """(source, strengths) of what a user typed; a text that is strengths by itself is of all sources.

    >>> split("ink.safetensors=1,0"), split("IN04=0.5"), split("<lora:ink:1:lbw=1,0>")
    (('ink.safetensors', '1,0'), ('', 'IN04=0.5'), ('ink', '<lora:ink:1:lbw=1,0>'))
    """
    if tag := TAG.fullmatch(text.strip()):
        return tag["name"].strip(), text
    source, _, rest = text.partition("=")
    try:
        strengths(text)
    except Unfit:
        if rest and source.strip() != "lbw" and not ANOTHER.search(source):
            return source, rest
    return "", text
