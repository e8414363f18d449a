"""`loramerge inspect`."""

from __future__ import annotations

from typing import Any

import click

from loramerge.cli import show, values
from loramerge.cli.downloads import listed
from loramerge.cli.options import FILTER_HELP, asks
from loramerge.errors import IncompatibleError, LoramergeError
from loramerge.merge.report import aligned
from loramerge.request.request import Request
from loramerge.sources.expand import expand
from loramerge.sources.open import Alphas, check_alphas, open_one
from loramerge.verbs.blocks import blocks, table
from loramerge.verbs.contents import Contents, contents
from loramerge.verbs.inspect import Inspection, measured


@click.command()
@click.argument("sources", nargs=-1, metavar="SOURCE...")
@click.option("--hub-filter", "filters", multiple=True, metavar="KEY=VALUE", help=FILTER_HELP)
@click.option("--download", is_flag=True, help="Download adapters from the Hub, and show their spectra too.")
@asks("combine", "alpha", "allow_pickle")
@click.option("--blocks", "by_block", is_flag=True, help="List the blocks of the model with their energy.")
@click.option("--json", "as_json", is_flag=True, help="Print every module with its spectrum as JSON.")
@click.pass_context
def inspect(
    ctx: click.Context,
    sources: tuple[str, ...],
    filters: tuple[str, ...],
    download: bool,
    alpha: Alphas,
    allow_pickle: bool,
    by_block: bool,
    as_json: bool,
) -> None:
    """Show what is in adapters: modules, ranks, scales, spectra, base model, oddities.

    The table has one row for each kind of module. `energy` is the share of ‖ΔW‖² in the strongest units. If
    a source cannot be read, stderr says why, and the others are still shown. Of one that cannot be merged,
    such as DoRA, its tensors are listed, with the reason. On the Hub only the header is
    read, so there are no spectra unless you add --download.

    \b
    Example:
      loramerge inspect a.safetensors adapters/*/
    """
    request = Request(alpha=alpha, allow_pickle=allow_pickle)
    named = [*sources, *values.hub_filter(filters)]
    if not named:
        raise click.UsageError("Missing argument 'SOURCE...': name adapters, or a --hub-filter.")
    members = [member for source in named for each in listed(source) for member, _ in expand(each)]
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
        shown.append(_data(facts, by_block))
        peeked += isinstance(facts, Inspection) and facts.peeked
        if not as_json:
            text = _text(facts, by_block)
            click.echo(f"{text}\n" if len(members) > 1 else text)
    if peeked and not as_json:
        show.note("note: on the Hub only headers were read; --download shows the spectra too")
    if as_json:
        show.data(shown)
    if failures:
        ctx.exit(failures[0].exit_code)


def _text(facts: Inspection | Contents, by_block: bool) -> str:
    """What is printed of a source."""
    rows = table(blocks(facts)) if by_block and isinstance(facts, Inspection) else []
    return "\n".join([str(facts), *(["", *aligned(rows)] if rows else [])])


def _data(facts: Inspection | Contents, by_block: bool) -> dict[str, Any]:
    """The same as plain values."""
    found = blocks(facts) if by_block and isinstance(facts, Inspection) else None
    return facts.to_dict() | ({} if found is None else {"blocks": [each.to_dict() for each in found]})


def _looked(source: str, request: Request, download: bool) -> Inspection | Contents:
    """What it is; of files that cannot be merged, what is in them."""
    try:
        return measured(open_one(source, request, peeking=not download))
    except IncompatibleError as error:
        return contents(source, str(error), request.allow_pickle)
