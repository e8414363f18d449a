"""`loramerge diff`."""

from __future__ import annotations

import click

from loramerge.cli import show, values
from loramerge.cli.options import PICKLE_HELP
from loramerge.verbs.diff import diff as compare


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--max-error",
    type=click.FloatRange(min=0),
    callback=values.number,
    help="Fail (exit 4) if a module is missing or differs by more than this share of its norm in A.",
)
@click.option("--alpha", multiple=True, metavar="[SOURCE=]A", help="The training alpha of files that do not "
    "say it: a number, or `rank` for scale 1.")  # fmt: skip
@click.option("--allow-pickle", is_flag=True, help=PICKLE_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print every module as JSON.")
def diff(
    a: str, b: str, max_error: float | None, alpha: tuple[str, ...], allow_pickle: bool, as_json: bool
) -> None:
    """Compare two adapters: relative error, cosine and norm ratio of every module.

    The updates ΔW are compared, so ranks, factors, scales and number types may differ. A module that only
    one of the two has counts as an error of 1. The table shows the worst modules.

    \b
    Example:
      loramerge diff merged merged-again --max-error 1e-6
    """
    found = compare(a, b, alpha=values.alphas(alpha), allow_pickle=allow_pickle)
    if as_json:
        show.data(found.to_dict())
    else:
        click.echo(str(found))
    if max_error is not None:
        found.check(max_error)
