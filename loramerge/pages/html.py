"""A page as HTML: one text, escaped, under a policy that lets no script but its own run and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from typing import Any

from loramerge import __version__
from loramerge.charts.draw import spec
from loramerge.charts.facts import shown
from loramerge.charts.style import config
from loramerge.charts.table import Column, Table
from loramerge.pages.bundle import script, style
from loramerge.pages.section import Section

OPEN = 12  # rows, up to which a table is open from the start
LONG = 60  # letters, from which a cell may break


def whole(title: str, sections: Sequence[Section]) -> str:
    """The HTML of a page."""
    code, look, title = script(), style(), html.escape(shown(title))
    links = "".join(f'<li><a href="#{s.name}">{html.escape(s.title)}</a></li>' for s in sections)
    return f"""<!DOCTYPE html>
<html lang="en" data-theme="light">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy(code, look)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{look}</style>
</head>
<body>
<a class="skip" href="#{sections[0].name}">To the first section</a>
<header><h1>{title}</h1><button id="theme" type="button">Dark page</button></header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{"".join(map(_section, sections))}
</main>
<footer>Made by loramerge {__version__}. Everything that this page shows is inside this one file.</footer>
{_names(sections)}
<script type="application/json" id="configs">{data({s: config(s) for s in ("light", "dark")})}</script>
<script>{code}</script>
</body>
</html>
"""


def policy(code: str, look: str) -> str:
    """The Content-Security-Policy: this script and this style, and nothing from anywhere."""
    return (
        f"default-src 'none'; script-src '{_hash(code)}'; style-src '{_hash(look)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def data(value: Any) -> str:
    """JSON that can stand in HTML: nothing in it ends a script or begins a tag.

    >>> data({"a": "</script>&"})
    '{"a":"\\\\u003c/script\\\\u003e\\\\u0026"}'
    """
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _section(section: Section) -> str:
    name, title = section.name, html.escape(section.title)
    notes = "".join(f'<p class="note">{html.escape(shown(note))}</p>' for note in section.notes)
    parts = [f'<section id="{name}" aria-labelledby="{name}-title">', f'<h2 id="{name}-title">{title}</h2>',
             f"<p>{html.escape(section.words)}</p>", notes]  # fmt: skip
    if section.table is not None:
        parts += [_figure(section, section.table), _table(section, section.table)]
    return "\n".join([*parts, _how(section), "</section>\n"])


def _figure(section: Section, table: Table) -> str:
    """The place of the chart, and the field that singles out, for those who use no mouse."""
    if section.chart is None:
        return ""
    pick, name = section.pick, section.name
    field = (
        f'<div class="pick"><label for="{name}-pick">Single out a {pick}</label>'
        f'<input id="{name}-pick" type="search" list="names-{pick}" data-column="{pick}" autocomplete="off">'
        "</div>"
        if pick
        else ""
    )
    label = html.escape(f"Chart: {section.title}. The table below has its numbers.")
    return (
        f'<figure data-pick="{pick or ""}">{field}<div class="chart" role="img" aria-label="{label}"></div>'
        f'<script type="application/json">{data(spec(section.chart, table))}</script></figure>'
    )


def _table(section: Section, table: Table) -> str:
    """The numbers; the first column names the row."""
    head = "".join(f'<th scope="col" data-kind="{c.kind}">{html.escape(c.name)}</th>' for c in table.columns)
    body = "".join(_row(section, table, row) for row in table.cells())
    count = f"{len(table)} row{'' if len(table) == 1 else 's'}"
    opened = " open" if len(table) <= OPEN else ""
    return (
        f"<details{opened}><summary>Table, {count}</summary>"
        f'<div class="scroll" role="region" tabindex="0" aria-label="{html.escape(section.title)}: table">'
        f'<table id="{section.name}-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        "</details>"
    )


def _row(section: Section, table: Table, row: list[str]) -> str:
    cells = "".join(
        _cell(column, text, first=at == 0)
        for at, (column, text) in enumerate(zip(table.columns, row, strict=True))
    )
    if section.pick is None:
        return f"<tr>{cells}</tr>"
    name = html.escape(row[table.names.index(section.pick)])
    return f'<tr data-column="{section.pick}" data-name="{name}">{cells}</tr>'


def _cell(column: Column, text: str, first: bool) -> str:
    tag = 'th scope="row"' if first else "td"
    kind = "number" if column.kind == "number" else "long" if len(text) > LONG else ""
    return f"<{tag}{f' class={kind}' * bool(kind)}>{html.escape(text)}</{tag.split()[0]}>"


def _how(section: Section) -> str:
    blocks = "".join(
        f'<p class="what">{title}</p><pre tabindex="0">{html.escape(code)}</pre>'
        for title, code in section.how.items()
    )
    return f"<details><summary>How to make this</summary>{blocks}</details>"


def _names(sections: Sequence[Section]) -> str:
    """What can be singled out, for the fields to offer."""
    found: dict[str, dict[str, None]] = {}
    for section in sections:
        if section.pick is not None and section.table is not None:
            found.setdefault(section.pick, {}).update(
                dict.fromkeys(map(shown, section.table.column(section.pick)))
            )
    return "".join(
        f'<datalist id="names-{pick}">'
        + "".join(f'<option value="{html.escape(name)}"></option>' for name in names)
        + "</datalist>"
        for pick, names in found.items()
    )
