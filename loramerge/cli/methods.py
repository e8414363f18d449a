"""`loramerge methods`."""

from __future__ import annotations

import textwrap
from typing import Any

import click

from loramerge.cli.catalogue import METHODS
from loramerge.cli.groups import METHOD, Command
from loramerge.cli.options import options_of, specs_of
from loramerge.merge.tables import columns, fitted, wrapped

ROOM = 24  # columns that a summary takes at least
GROUP = "loramerge.methods"


@click.command(cls=Command)
@click.argument("name", required=False, type=METHOD)
@click.option("--json", "as_json", is_flag=True, help="Print methods with their options as JSON.")
@click.pass_context
def methods(ctx: click.Context, name: str | None, as_json: bool) -> None:
    """List the methods, or explain one: formula, source, limits, options."""
    if as_json:
        return _as_json(name)
    return click.echo("\n".join(_table()) if name is None else _explained(ctx, name))


def _as_json(name: str | None) -> None:
    from loramerge.algorithms import METHODS as CLASSES
    from loramerge.algorithms import find, name_of_class
    from loramerge.cli import show

    shown = METHODS if name is None else [name_of_class(find(name))]
    show.data({"methods": [_facts(each, (CLASSES.get(each) or find(each)).description()) for each in shown]})


def _facts(name: str, description: str) -> dict[str, Any]:
    fields = ("name", "type", "default", "help", "choices", "low", "high")
    return {
        "name": name,
        "summary": METHODS[name].summary if name in METHODS else None,
        "description": description,
        "options": [{field: getattr(spec, field) for field in fields} for spec in specs_of(name)],
    }


def _table() -> list[str]:
    rows = [["method", "family", "weights", "what it does"]]
    rows += [[name, method.family, method.weights, method.summary] for name, method in METHODS.items()]
    rows += _of_packages()
    *widths, _ = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = columns() - sum(widths) - 2 * len(widths)
    if room < ROOM:
        return fitted(rows)
    return [line for row in rows for line in _beside(row, widths, room)]


def _beside(row: list[str], widths: list[int], room: int) -> list[str]:
    """A line of the table; its last cell goes on below, where it is longer than there is room."""
    start = "".join(f"{cell.ljust(width)}  " for cell, width in zip(row, widths, strict=False))
    first, *more = textwrap.wrap(row[-1], room) or [""]
    return [f"{start}{first}", *(" " * len(start) + line for line in more)]


def _of_packages() -> list[list[str]]:
    """Methods that other packages bring; none of them is loaded."""
    from importlib.metadata import entry_points

    if not entry_points(group=GROUP):
        return []
    from loramerge.algorithms.plugins import installed, package_of

    others = {name: point for name, point in installed().items() if name not in METHODS}
    return [[name, "–", "–", f"of the package {package_of(point)}"] for name, point in others.items()]


def _explained(ctx: click.Context, name: str) -> str:
    from loramerge.algorithms import find, name_of_class

    method = find(name)
    records = [option.get_help_record(ctx) for option in options_of(name)]
    rows = [record for record in records if record is not None]
    text = _in_paragraphs(f"{name_of_class(method)}: {method.description()}")
    formatter = ctx.make_formatter()
    if rows:
        with formatter.section("Options"):
            formatter.write_dl(rows)
    return f"{text}\n\n{formatter.getvalue()}".rstrip()


def _in_paragraphs(text: str) -> str:
    """The text in lines that fit the terminal; formulas stay as they stand."""
    width = columns()
    if max(map(len, text.splitlines())) <= width:
        return text
    parts = (part if "\n " in f"\n{part}" else "\n".join(wrapped([part])) for part in text.split("\n\n"))
    return "\n\n".join(parts)
