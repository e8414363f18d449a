"""What commands print: data to stdout, words and progress to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import click

from loramerge.hub.names import hub_name
from loramerge.merge.report import Module
from loramerge.request.recipe import Ingredient

Item = TypeVar("Item")
PATIENCE = 1.0  # seconds before a bar is shown


def data(value: Any) -> None:
    """A value as JSON."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def note(sentence: str) -> None:
    """A sentence the user should read."""
    click.echo(sentence, err=True)


def progress(done: Iterable[list[Module]], total: int) -> Iterator[list[Module]]:
    """Pass results on with a bar over modules: on a terminal only, and only after a second."""
    return _watched(done, total, "module", len)


def opening(sources: Sequence[Ingredient]) -> Iterator[Ingredient]:
    """The sources one by one, with a bar where there are so many that it takes a second."""
    if any(hub_name(each.source) for each in sources):  # their downloads have a bar
        return iter(sources)
    return _watched(sources, len(sources), "adapter", lambda _: 1)


def _watched(items: Iterable[Item], total: int, unit: str, count: Callable[[Item], int]) -> Iterator[Item]:
    bar, done, began = None, 0, time.monotonic()
    try:
        for item in items:
            yield item
            done += count(item)
            if bar is None and sys.stderr.isatty() and time.monotonic() - began > PATIENCE:
                from tqdm import tqdm  # an import that a quick merge need not wait for

                bar = tqdm(total=total, initial=done, unit=unit, leave=False)
            elif bar is not None:
                bar.update(count(item))
    finally:
        if bar is not None:
            bar.close()


def size(count: float) -> str:
    """Bytes for people.

    >>> size(3253104)
    '3.3 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
