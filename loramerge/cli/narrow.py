"""Help that fits the terminal: in a narrow one each option stands above its words, not beside them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

import click

NARROW = 60  # columns below which two lists side by side have no room
LEAST = 20


class Formatter(click.HelpFormatter):
    """Click's, which by itself is never narrower than 50 columns."""

    def __init__(
        self, indent_increment: int = 2, width: int | None = None, max_width: int | None = None
    ) -> None:
        import shutil  # it loads compressors, and only help needs the width

        columns = shutil.get_terminal_size().columns
        fitting = max(min(columns, max_width or 80) - 2, LEAST)
        super().__init__(indent_increment, fitting if width is None else width, max_width)

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        indent = self.current_indent
        broken = [(self._wrapped(name.replace("|", "| "), indent).replace("| ", "|"), w) for name, w in rows]
        if self.width >= NARROW - 2:
            return super().write_dl(broken, col_max, col_spacing)
        for name, words in broken:
            self.write(f"{' ' * indent}{name}\n")
            if words:
                self.write(f"{' ' * (indent + 2)}{self._wrapped(words, indent)}\n")
        return None

    def _wrapped(self, text: str, indent: int) -> str:
        """Lines of a cell; those after the first stand two columns to the right of this indent."""
        found = textwrap.wrap(text, self.width - indent - 2, break_on_hyphens=False)
        return f"\n{' ' * (indent + 2)}".join(found)


class Context(click.Context):
    """Where help is made by that formatter."""

    formatter_class = Formatter
