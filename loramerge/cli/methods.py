"""`loramerge methods`."""

from __future__ import annotations

import click

from loramerge.algorithms import METHODS, find
from loramerge.algorithms.plugins import installed, package_of
from loramerge.cli.options import from_fields


@click.command()
@click.argument("name", required=False)
@click.pass_context
def methods(ctx: click.Context, name: str | None) -> None:
    """List the methods, or explain one: formula, source, limits, options."""
    click.echo("\n".join(_table()) if name is None else _explained(ctx, name))


def _table() -> list[str]:
    rows = [["method", "family", "weights", "what it does"]]
    for name, method in METHODS.items():
        traits = method().traits
        summary = method.description().partition("\n")[0]
        rows.append([name, traits.family, traits.weights, summary])
    rows += [
        [n, "–", "–", f"of the package {package_of(p)}"] for n, p in installed().items() if n not in METHODS
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _explained(ctx: click.Context, name: str) -> str:
    method = find(name)
    records = [option.get_help_record(ctx) for option in from_fields(method)]
    rows = [list(record) for record in records if record is not None]
    options = [f"  {flag.ljust(max(len(r[0]) for r in rows))}  {help}" for flag, help in rows]
    return "\n".join([f"{name}: {method.description()}", *(["", "Options:", *options] if rows else [])])
