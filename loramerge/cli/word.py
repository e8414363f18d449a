"""An option that takes one of some words."""

from __future__ import annotations

import difflib
from typing import Any

import click


class Word(click.Choice[str]):
    """One of some words; of a misspelt one the nearest is told."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        near = difflib.get_close_matches(str(value), list(map(str, self.choices)), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        return f"{super().get_invalid_choice_message(value, ctx)}{hint}"
