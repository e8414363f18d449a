"""`loramerge restore`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loramerge.arrays.backend import keep_freed_memory
from loramerge.cli import show
from loramerge.cli.groups import SOURCE, Command
from loramerge.cli.number import Number
from loramerge.cli.options import asks, typed
from loramerge.cli.results import check_printed, show_merge
from loramerge.merge.run import run
from loramerge.verbs.restore import restored


@click.command(cls=Command)
@click.argument("merged", metavar="MERGED", type=SOURCE)
@click.option("--task", metavar="NAME", help="The source to bring back, by its name in the merge.")
@click.option("--inputs", type=SOURCE, metavar="FILE", help="Instead of a task: a .npz of the inputs of "
    "some modules, by module. The router of the merge tells which task they belong to.")  # fmt: skip
@click.option("--rank", type=click.IntRange(min=1), help="The rank of every module.  [default: the rank that "
    "the task's adapter had]")  # fmt: skip
@click.option("--energy", type=Number(0, 1, low_open=True),
    help="Instead of a rank: the smallest that keeps this share of ‖S ∘ ΔW‖² in every module.")  # fmt: skip
@asks("restore")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the path of the output.")
@click.pass_context
def restore(ctx: click.Context, /, merged: str, task: str | None, inputs: str | None, **given: Any) -> None:
    """Bring one task back from a merge that was made with --method mergevla.

    The mask of the task says which entries of the merge belong to it. These entries have no low rank, so
    they are fitted again. The result is as strong as the source was in the merge, its weight included.
    MERGED is a folder, or a repository on the Hub.

    \b
    Example:
      loramerge combine a.safetensors b.safetensors --method mergevla -o merged
      loramerge restore merged --task a.safetensors --rank 16 -o again
    """
    printed, asked = check_printed(given), typed(ctx, "restore")
    keep_freed_memory()
    plan = restored(
        merged,
        (task, inputs),
        {"rank": given["rank"], "energy": given["energy"], "progress": show.bar(), **asked},
    )
    out = plan.request.out or Path("restored")
    plan = plan.asking(out=out)
    return show_merge(run(plan), plan, out, printed)
