"""What commands print: data to stdout, words and progress to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import click

from loramerge import __version__
from loramerge.request.kinds import size as size  # what several commands print
from loramerge.request.progress import Bar

SCHEMA = 1  # of what --json prints; a key that goes or changes its meaning makes it 2


def data(value: Mapping[str, Any]) -> None:
    """A table as JSON, which says first which schema it follows, and what wrote it."""
    whole = {"schema": SCHEMA, "loramerge": __version__, **value}
    click.echo(json.dumps(whole, indent=2, allow_nan=False))


def note(sentence: str) -> None:
    """A sentence the user should read."""
    click.echo(sentence, err=True)


def bar() -> Bar | None:
    """A bar for those who wait, on a terminal only."""
    return Bar() if sys.stderr is not None and sys.stderr.isatty() else None
