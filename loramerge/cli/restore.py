"""`loramerge restore`."""

from __future__ import annotations

from pathlib import Path

import click

from loramerge.arrays.backend import keep_freed_memory
from loramerge.cli import show, values
from loramerge.cli.combine import show_merge
from loramerge.merge.run import run
from loramerge.request.effort import Effort
from loramerge.verbs.restore import restoring


@click.command()
@click.argument("merged", metavar="MERGED")
@click.option(
    "--task", required=True, metavar="NAME", help="The source to bring back, by its name in the merge."
)
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("restored"), show_default=True,
    help="Where to write: NAME.safetensors for one file, another name for a PEFT folder.")  # fmt: skip
@click.option("--rank", type=click.IntRange(min=1), help="The rank of every module.  [default: the rank "
    "that the task's adapter had]")  # fmt: skip
@click.option("--energy", type=click.FloatRange(0, 1, min_open=True), callback=values.number,
    help="Instead of a rank: the smallest that keeps this share of ‖S ∘ ΔW‖² in every module.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16", "float64"]),
    help="Number type of the output.  [default: that of the merge]")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), help="Workers; they do not change the result.  "
    "[default: one per core, up to 8]")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the path of the output.")
def restore(
    merged: str,
    task: str,
    out: Path,
    rank: int | None,
    energy: float | None,
    dtype: str | None,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Bring one task back from a merge that was made with --method mergevla.

    The mask of the task says which entries of the merge belong to it. These entries have no low rank, so
    they are fitted again. The result is as strong as the source was in the merge, its weight included.
    MERGED is a folder, or a repository on the Hub.

    \b
    Example:
      loramerge combine a.safetensors b.safetensors --method mergevla -o merged
      loramerge restore merged --task a.safetensors --rank 16 -o again
    """
    if quiet and as_json:
        raise click.UsageError("--json and --quiet both decide what is printed: give one of them.")
    keep_freed_memory()
    effort = Effort(threads)
    todo = restoring(merged, task, effort, rank=rank, energy=energy, dtype=dtype)
    made = run(todo, out, overwrite=overwrite, effort=effort, progress=show.progress)
    return show_merge(made, todo, out, as_json, quiet)
