"""`loramerge report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loramerge.arrays.backend import keep_freed_memory
from loramerge.cli import show, values
from loramerge.cli.downloads import listed
from loramerge.cli.groups import METHOD, SOURCE, Command
from loramerge.cli.options import FILTER_HELP, asks, typed
from loramerge.errors import printable
from loramerge.pages.report import report as look
from loramerge.pages.section import Section


@click.command(cls=Command)
@click.argument("sources", nargs=-1, metavar="SOURCE...", type=SOURCE)
@click.option("--hub-filter", "filters", multiple=True, metavar="KEY=VALUE", help=FILTER_HELP)
@click.option("--rank", type=click.IntRange(min=1), help="The rank at which methods are compared.  [default: "
    "the largest of a source]")  # fmt: skip
@click.option("--method", "methods", type=METHOD, multiple=True, metavar="NAME", help="A method to "
    "compare; repeat it for several.  [default: those that need nothing but Grams]")  # fmt: skip
@asks("report")
@click.option("--json", "as_json", is_flag=True, help="Print the tables of the page as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the path of the page.")
@click.pass_context
def report(ctx: click.Context, /, sources: tuple[str, ...], **given: Any) -> None:
    """Write a page about adapters: one HTML file that opens in a browser without a network.

    It shows what the adapters are, which programs load them, who overlaps with whom, spectra, effective rank
    over depth, loss against size, and methods side by side. Under each chart are its numbers, and the
    command that makes it. It needs the extra `report`.

    \b
    Example:
      loramerge report a.safetensors b.safetensors -o page.html
    """
    named = [*sources, *values.hub_filter(given["filters"])]
    if not named:
        raise click.UsageError("Missing argument 'SOURCE...': name adapters, or a --hub-filter.")
    asked = {"out": Path("report.html"), **typed(ctx, "report")}
    keep_freed_memory()
    members = [member for source in named for member in listed(source)]
    page = look(members, rank=given["rank"], methods=given["methods"], progress=show.bar(), **asked)
    if given["as_json"]:
        return show.data({"out": str(asked["out"]), "sections": [_data(each) for each in page.sections]})
    if given["quiet"]:
        return click.echo(str(asked["out"]))
    size = show.size(asked["out"].stat().st_size)
    click.echo(str(page))
    return show.note(f"wrote {printable(asked['out'])}: {len(page.sections)} sections, {size}")


def _data(section: Section) -> dict[str, Any]:
    """The numbers of a section."""
    rows = [] if section.table is None else section.table.records()
    return {"name": section.name, "title": section.title, "rows": rows, "notes": list(section.notes)}
