"""An option that takes one of some words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from loramerge.errors import alike


class Word(click.Choice[str]):
    """One of some words; of a misspelt one the nearest is told.

    Args:
        also: words that are understood but not offered.
    """

    def __init__(self, choices: Iterable[str], also: Iterable[str] = ()) -> None:
        super().__init__(list(choices))
        self.also = tuple(also)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return value if value in self.also else super().convert(value, param, ctx)

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        near = alike(str(value), [*map(str, self.choices), *self.also])
        hint = f" Did you mean {near[0]}?" if near else ""
        return f"{super().get_invalid_choice_message(value, ctx)}{hint}"
