"""`loramerge resize`."""

from __future__ import annotations

from typing import Any

import click

from loramerge.arrays.backend import keep_freed_memory
from loramerge.cli import show
from loramerge.cli.groups import SOURCE, Command
from loramerge.cli.number import Number
from loramerge.cli.options import asks, typed
from loramerge.cli.results import check_printed, show_merge, show_plan
from loramerge.formats import output
from loramerge.formats.files.atomic import check_output
from loramerge.merge.run import run
from loramerge.verbs.resize import resized


@click.command(cls=Command)
@click.argument("source", metavar="SOURCE", type=SOURCE)
@click.option("--rank", type=click.IntRange(min=1), help="Units in every module.")
@click.option("--energy", type=Number(0, 1, low_open=True),
    help="The smallest common rank that keeps this share of ‖ΔW‖² in every module.")  # fmt: skip
@asks("resize")
@click.option(
    "--dry-run", is_flag=True, help="Show what would be written, and error against size; write nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the path of the output.")
@click.pass_context
def resize(ctx: click.Context, /, source: str, **given: Any) -> None:
    """Make one adapter smaller, losing as little of it as its size allows.

    Give one of --rank, --energy, --energy-per-module, --total-rank or --size. The result is the best
    of that rank in every module, the same as `combine --method svd` of this adapter alone.

    \b
    Example:
      loramerge resize a.safetensors --size 1MB --profile compact -o small.safetensors
    """
    printed, asked = check_printed(given), typed(ctx, "resize")
    keep_freed_memory()
    bare = output.is_bare(asked["out"]) if "out" in asked else None
    plan = resized(
        source, {"rank": given["rank"], "energy": given["energy"], **asked, "progress": show.bar()}, bare
    )
    out = plan.request.out or plan.default_out("resized")
    plan = plan.asking(out=out)
    if given["dry_run"]:
        check_output(out, plan.request.overwrite, folder=not output.is_bare(out))
        plan.check_destination(out)
        return show_plan(plan, out, printed)
    return show_merge(run(plan), plan, out, printed)
