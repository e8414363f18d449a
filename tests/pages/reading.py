"""A page as a browser's parser sees it: tags, what would be fetched, and tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any


@dataclass
class Read(HTMLParser):
    """The tags with their attributes, scripts and styles as text, and the cells of every table by its id."""

    tags: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    raw: dict[str, list[tuple[dict[str, Any], str]]] = field(default_factory=dict)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._within, self._table, self._cell = "", "", False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._within = tag
            self.raw.setdefault(tag, []).append((dict(attrs), ""))
        if tag == "table":
            self._table = dict(attrs).get("id") or ""
            self.tables[self._table] = []
        if tag == "tr":
            self.tables[self._table].append([])
        self._cell = tag in ("td", "th")
        if self._cell:
            self.tables[self._table][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._within = "" if tag in ("script", "style") else self._within
        self._cell = False if tag in ("td", "th") else self._cell

    def handle_data(self, data: str) -> None:
        if self._within:
            attrs, text = self.raw[self._within][-1]
            self.raw[self._within][-1] = (attrs, text + data)
        elif self._cell:
            self.tables[self._table][-1][-1] += data
        self.text += "" if self._within else data


def read(html: str) -> Read:
    found = Read()
    found.feed(html)
    found.close()
    return found
