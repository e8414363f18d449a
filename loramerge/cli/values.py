"""Values as users type them: alphas, weights."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from loramerge.errors import printable
from loramerge.request import kinds
from loramerge.request.blocks import Blocks

if TYPE_CHECKING:
    from loramerge.formats import Alpha
    from loramerge.sources.open import Alphas

MOST_SIGNS = 20  # that are tried, each by a look at the disk


def alphas(_: click.Context | None, __: click.Parameter | None, texts: tuple[str, ...]) -> Alphas:
    """`16`, `rslora:16`, `rank` or `SOURCE=16`, repeatable.

    >>> alphas(None, None, ("a.safetensors=16", "b.safetensors=rank"))
    {'a.safetensors': 16.0, 'b.safetensors': 'rank'}
    """
    named: dict[str, Alpha] = {}
    common: list[Alpha] = []
    for text in texts:
        source, equals, value = text.rpartition("=")
        if equals:
            named[source] = _alpha(value, text)
        else:
            common.append(_alpha(value, text))
    if len(common) > 1 or (common and named):
        raise click.UsageError("Give one --alpha for all sources, or --alpha SOURCE=A for each.")
    return common[0] if common else named or None


def _alpha(value: str, text: str) -> Alpha:
    if value == "rank" or value.startswith("rslora:"):
        return value
    try:
        return float(value)
    except ValueError:
        raise click.UsageError(f"--alpha {text}: {value!r} is neither a number nor 'rank'.") from None


def weights(each: tuple[float, ...], together: str | None) -> list[float] | None:
    """`-w 0.7 -w -0.3` or `--weights 0.7,-0.3`.

    >>> weights((), "0.7,-0.3")
    [0.7, -0.3]
    """
    if each and together is not None:
        raise click.UsageError("Give the weights by -w or by --weights, not by both.")
    if together is None:
        return list(each) or None
    try:
        return [float(part) for part in together.split(",")]
    except ValueError:
        raise click.UsageError(f"--weights {together!r} is no list of numbers such as 0.7,-0.3.") from None


def hub_filter(texts: tuple[str, ...]) -> list[str]:
    """`--hub-filter KEY=VALUE`, repeatable, as a source."""
    if not texts:
        return []
    from loramerge.hub.lists import filter_source

    return [filter_source(texts)]


def descriptions(told: dict[str, str], file: str | None) -> dict[str, str] | str | None:
    """`--description SOURCE=TEXT`, repeated, or `--descriptions FILE`."""
    if told and file is not None:
        raise click.UsageError("Describe the sources by --description or by --descriptions, not by both.")
    return told or file


def named_path(text: str) -> tuple[str, str]:
    """`NAME=PATH`, apart; names and paths may have a `=` of their own, and then a path that is there counts.

    >>> named_path("a=runs/a"), named_path("a"), named_path("a=b=.")
    (('a', 'runs/a'), ('a', ''), ('a=b', '.'))
    """
    signs = [place for place, char in enumerate(text) if char == "="]
    ways = [(text[:place], text[place + 1 :]) for place in signs[:MOST_SIGNS]]
    here = (way for way in ways if way[1] and os.path.exists(way[1]))
    return next(here, ways[0] if ways else (text, ""))


def pairs(_: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """`SOURCE=PATH`, repeatable."""
    found = {}
    for text in texts:
        source, path = named_path(text)
        if not (source and path):
            raise click.BadParameter(f"{printable(repr(text))} is not {parameter.metavar}.")
        if source in found:
            raise click.BadParameter(f"{printable(source)} is given twice.")
        found[source] = path
    return found


def blocks(
    _: click.Context | None, __: click.Parameter | None, texts: tuple[str, ...]
) -> str | dict[str, str] | None:
    """`--blocks BLOCKS` for all sources, or `--blocks SOURCE=BLOCKS` for each.

    >>> blocks(None, None, ("ink.safetensors=double 3-7", "<lora:oil:1:lbw=1,0>"))
    {'ink.safetensors': 'double 3-7', 'oil': '<lora:oil:1:lbw=1,0>'}
    """
    found: dict[str, str] = {}
    for text in texts:
        try:
            own = Blocks().fit(text)
        except kinds.Unfit as error:
            raise click.UsageError(f"--blocks {printable(repr(text), 100)} {error}.") from None
        if isinstance(own, str):
            if len(texts) > 1:
                raise click.UsageError(
                    "Give one --blocks for all sources, or --blocks SOURCE=BLOCKS for each."
                )
            return own
        if twice := next((source for source in own if source in found), None):
            raise click.UsageError(f"--blocks names {printable(twice)} twice.")
        found |= own
    return found or None


def renames(
    _: click.Context | None, __: click.Parameter | None, texts: tuple[str, ...]
) -> dict[str, str] | None:
    """`--rename OLD=NEW` or `--rename FILE`, repeatable.

    >>> renames(None, None, ("model=model.language_model", "visual=model.visual"))
    {'model': 'model.language_model', 'visual': 'model.visual'}
    """
    try:
        return kinds.Renames().fit(texts) or None
    except kinds.Unfit as error:
        raise click.UsageError(f"--rename {printable(' '.join(texts))} {error}.") from None
