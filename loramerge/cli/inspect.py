"""`loramerge inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from loramerge.cli import show, values
from loramerge.cli.downloads import listed
from loramerge.cli.groups import SOURCE, Command
from loramerge.cli.options import FILTER_HELP, asks
from loramerge.errors import IncompatibleError, LoramergeError, printable
from loramerge.formats.bundles import is_bundle
from loramerge.merge.tables import fitted
from loramerge.request.request import Request
from loramerge.sources.expand import expand
from loramerge.sources.open import check_alphas, open_one
from loramerge.verbs.blocks import blocks, table
from loramerge.verbs.contents import Contents, contents
from loramerge.verbs.inspect import Inspection, measured


@click.command(cls=Command)
@click.argument("sources", nargs=-1, metavar="SOURCE...", type=SOURCE)
@click.option("--hub-filter", "filters", multiple=True, metavar="KEY=VALUE", help=FILTER_HELP)
@click.option("--download", is_flag=True, help="Download adapters from the Hub, to show their spectra too.")
@click.option("--groups", is_flag=True, help="Also show the norm of the factors of every block.")
@asks("combine", "alpha", "allow_pickle", "base")
@click.option("--blocks", "by_block", is_flag=True, help="List the blocks of the model with their energy.")
@click.option("--json", "as_json", is_flag=True, help="Print every module with its spectrum as JSON.")
@click.pass_context
def inspect(
    ctx: click.Context,
    /,
    sources: tuple[str, ...],
    download: bool,
    groups: bool,
    by_block: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Show what is in adapters: modules, ranks, scales, spectra, base model, oddities.

    The table has one row for each kind of module. `energy` is the share of ‖ΔW‖² in the strongest units. If
    a source cannot be read, stderr says why, and the others are still shown. If one cannot be merged, its
    tensors are listed, with the reason. On the Hub only the header is read, so there are no spectra unless
    you add --download.

    \b
    Example:
      loramerge inspect a.safetensors adapters/*/
    """
    named = [*sources, *values.hub_filter(given.pop("filters"))]
    request = Request(**given, progress=show.bar())
    if not named:
        raise click.UsageError("Missing argument 'SOURCE...': name adapters, or a --hub-filter.")
    members = [member for source in named for each in listed(source) for member in _members(each)]
    check_alphas(members, request.alpha)
    failures: list[LoramergeError] = []
    shown: list[dict[str, Any]] = []
    peeked = 0
    for source in members:
        try:
            facts = _looked(source, request, download)
        except LoramergeError as error:
            failures.append(error)
            show.note(f"Error: {error}")
            continue
        shown.append(_data(facts, groups, by_block))
        peeked += isinstance(facts, Inspection) and facts.peeked
        if not as_json:
            text = _text(facts, groups, by_block)
            click.echo(f"{text}\n" if len(members) > 1 else text)
    if peeked and not as_json:
        show.note("note: on the Hub only headers were read; --download shows the spectra too")
    if as_json:
        show.data({"adapters": shown})
    if failures:
        ctx.exit(failures[0].exit_code)


def _members(source: str) -> list[str]:
    """A bundle is shown as a whole, and then each adapter in it."""
    return [source] * is_bundle(source) + [member for member, _ in expand(source)]


def _text(facts: Inspection | Contents, groups: bool, by_block: bool) -> str:
    """What is printed of a source."""
    norms = [[printable(name, 60), f"{norm:.4g}"] for name, norm in _norms(facts, groups).items()]
    tables = [[["block", "norm"], *norms]] if norms else []
    if by_block and isinstance(facts, Inspection):
        tables.append(table(blocks(facts)))
    return "\n".join([str(facts), *(line for rows in tables for line in ("", *fitted(rows)))])


def _data(facts: Inspection | Contents, groups: bool, by_block: bool) -> dict[str, Any]:
    """The same as plain values."""
    more: dict[str, Any] = {"groups": dict(norms)} if (norms := _norms(facts, groups)) else {}
    if by_block and isinstance(facts, Inspection):
        more["blocks"] = [each.to_dict() for each in blocks(facts)]
    return facts.to_dict() | more


def _norms(facts: Inspection | Contents, wanted: bool) -> Mapping[str, float]:
    """Block -> norm of its factors; nothing of what was not read."""
    return facts.groups if wanted and isinstance(facts, Inspection) and not facts.peeked else {}


def _looked(source: str, request: Request, download: bool) -> Inspection | Contents:
    """What it is; of files that cannot be merged, what is in them."""
    try:
        return measured(open_one(source, request, peeking=not download), request.tell)
    except IncompatibleError as error:
        return contents(source, error, request.allow_pickle)
