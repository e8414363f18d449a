"""A page as a value: printed as text, shown in a notebook, written as one file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loramerge.charts.draw import drawn
from loramerge.charts.facts import rows_html
from loramerge.errors import UsageError, printable
from loramerge.formats.files.atomic import Confirm, check_output, new_file
from loramerge.pages.section import Section


@dataclass(frozen=True, eq=False)
class Page:
    """What `report` returns.

    Args:
        title: what it is about.   sections: in their order.
    """

    title: str
    sections: tuple[Section, ...]

    def __getitem__(self, name: str) -> Section:
        """A section by its name. Raises UsageError: it has none of that name."""
        for section in self.sections:
            if section.name == name:
                return section
        raise UsageError(f"The page has no section {printable(name)}: it has {', '.join(self.names)}.")

    @property
    def names(self) -> list[str]:
        """The names of its sections."""
        return [section.name for section in self.sections]

    @property
    def plot(self) -> Plots:
        """Its charts for a notebook or a file: `page.plot.spectra().save("spectra.svg")`."""
        return Plots(self)

    def html(self) -> str:
        """The whole page: one text, with everything that it needs inside.

        Raises:
            UsageError: the extra `report` is not installed.
        """
        from loramerge.pages.html import whole  # which brings a browser's libraries

        return whole(self.title, self.sections)

    def save(self, out: str | Path, *, overwrite: bool = False) -> Path:
        """Write it as one file that opens without a network.

        Raises:
            OutputError: `out` exists or cannot be written.
        """
        path = Path(out)
        check_page(path, overwrite)
        write_page(self, path, overwrite)
        return path

    def __repr__(self) -> str:
        return f"<Page {printable(self.title, 60)!r} of {len(self.sections)} sections>"

    def __str__(self) -> str:
        return "\n".join([printable(self.title), *(f"  {each.title}" for each in self.sections)])

    def _repr_html_(self) -> str:
        return "".join(section._repr_html_() for section in self.sections)


def check_page(path: Path, overwrite: bool) -> None:
    """Whether a page can be written there, before anything is read.

    Raises:
        UsageError: the extra `report` is not installed.   OutputError: it exists, or cannot be written.
    """
    from loramerge.pages.bundle import check_installed

    check_installed()
    check_output(path, overwrite, folder=False)


def write_page(page: Page, path: Path, overwrite: bool, confirm: Confirm = lambda: None) -> None:
    """What `Page.save` does. `confirm` is called last of all, and may raise."""
    text = page.html()
    with new_file(path, overwrite, confirm) as new:
        new.write_text(text, encoding="utf-8")


class Plots:
    """The charts of a page, by the names of its sections."""

    def __init__(self, page: Page) -> None:
        self._charts = {s.name: s for s in page.sections if s.chart is not None and s.table is not None}
        self._page = page

    def __dir__(self) -> list[str]:
        return sorted(self._charts)

    def __repr__(self) -> str:
        return f"<Plots: {', '.join(self)}>"

    def _repr_html_(self) -> str:
        return rows_html(("chart", "shows"), [(name, each.title) for name, each in self._charts.items()])

    def __iter__(self) -> Iterator[str]:
        return iter(self._charts)

    def __getattr__(self, name: str) -> Any:
        """A function that draws the chart of a section."""
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._charts:
            why = " ".join(self._page[name].notes) if name in self._page.names else ""
            raise UsageError(why or f"The page has no chart {printable(name)}: it has {', '.join(self)}.")
        section = self._charts[name]
        assert section.chart is not None
        assert section.table is not None
        draw, table = section.chart, section.table
        return lambda: drawn(draw, table)
