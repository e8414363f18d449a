"""What commands print: data to stdout, words and progress to stderr."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click

from loramerge.hub.names import hub_name
from loramerge.report import Module


def data(value: Any) -> None:
    """A value as JSON."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def note(sentence: str) -> None:
    """A sentence the user should read."""
    click.echo(sentence, err=True)


def progress(done: Iterable[list[Module]], total: int) -> Iterator[list[Module]]:
    """Pass results on with a bar over modules: on a terminal only, and only after a second."""
    from tqdm import tqdm

    with tqdm(total=total, unit="module", delay=1.0, disable=None, leave=False) as bar:
        for modules in done:
            yield modules
            bar.update(len(modules))


def opening(sources: Sequence[str]) -> Iterable[str]:
    """The sources one by one, with a bar where there are so many that it takes a second."""
    from tqdm import tqdm

    if any(hub_name(source) for source in sources):  # their downloads have a bar
        return sources
    bar: Iterable[str] = tqdm(sources, unit="adapter", delay=1.0, disable=None, leave=False)
    return bar


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
