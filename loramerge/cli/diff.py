"""`loramerge diff`."""

from __future__ import annotations

from typing import Any

import click

from loramerge.cli import show
from loramerge.cli.groups import SOURCE, Command
from loramerge.cli.number import Number
from loramerge.cli.options import asks, typed
from loramerge.verbs.diff import diff as compare


@click.command(cls=Command)
@click.argument("a", metavar="A", type=SOURCE)
@click.argument("b", metavar="B", type=SOURCE)
@click.option(
    "--max-error",
    type=Number(0),
    help="Fail (exit 4) if a module is missing or differs by more than this share of its norm in A.",
)
@asks("diff")
@click.option("--overlap", is_flag=True, help="Show how much they change the same entries too: C_geo, the "
    "squared cosine, and C_RM, Σ |Aᵢⱼ Bᵢⱼ|.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print every module as JSON.")
@click.pass_context
def diff(
    ctx: click.Context, /, a: str, b: str, max_error: float | None, overlap: bool, as_json: bool, **_: Any
) -> None:
    """Compare two adapters: relative error, cosine and norm ratio of every module.

    The updates ΔW are compared, so ranks, factors, scales and number types may differ. A module that only
    one of the two has counts as an error of 1. The table shows the worst modules.

    \b
    Example:
      loramerge diff merged merged-again --max-error 1e-6
    """
    found = compare(a, b, overlap=overlap, **typed(ctx, "diff"), progress=show.bar())
    if as_json:
        show.data(found.to_dict())
    else:
        click.echo(str(found))
    if max_error is not None:
        found.check(max_error)
