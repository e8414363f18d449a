"""`loramerge resize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loramerge.arrays.backend import keep_freed_memory
from loramerge.cli import show, values
from loramerge.cli.combine import show_merge, show_plan
from loramerge.cli.options import CONSUMERS, PICKLE_HELP
from loramerge.formats import output
from loramerge.formats.files.atomic import check_output
from loramerge.formats.peft.profiles import PROFILES
from loramerge.merge.run import run
from loramerge.request.effort import Effort
from loramerge.verbs.resize import resizing


@click.command()
@click.argument("source", metavar="SOURCE")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Where to write: NAME.safetensors for one "
    "file, another name for a PEFT folder.  [default: resized.safetensors if SOURCE is a bare file, "
    "else resized]")  # fmt: skip
@click.option("--rank", type=click.IntRange(min=1), help="Units in every module.")
@click.option("--energy", type=click.FloatRange(0, 1, min_open=True), callback=values.number,
    help="The smallest common rank that keeps this share of ‖ΔW‖² in every module.")  # fmt: skip
@click.option("--total-rank", type=click.IntRange(min=1), help="The ranks of all modules together.")
@click.option("--size", callback=values.budget, metavar="SIZE", help="The bytes of the file of weights, such "
    "as 20MB; never above.")  # fmt: skip
@click.option("--profile", type=click.Choice(PROFILES), default="portable", show_default=True,
    help="portable: one rank for all modules; compact: each its own.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16", "float64"]),
    help="Type of the output.  [default: that of the source]")  # fmt: skip
@click.option("--for", "consumer", type=click.Choice(CONSUMERS), help="The program that shall load it: "
    "the result keeps to what it loads, or is refused. See `loramerge check`.")  # fmt: skip
@click.option("--max-rank", type=click.IntRange(min=1), help="The largest rank that this program was told to "
    "load.  [default: that of the program itself; 16 for vLLM]")  # fmt: skip
@click.option("--alpha", "alpha", metavar="A", help="Training alpha of a bare file that does not say it: a "
    "number, or `rank` for scale 1.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), help="Workers; the result does not depend on it.  "
    "[default: one per core, up to 8]")  # fmt: skip
@click.option("--allow-pickle", is_flag=True, help=PICKLE_HELP)
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option(
    "--dry-run", is_flag=True, help="Show what would be written, and error against size; write nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the path of the output.")
def resize(
    source: str,
    out: Path | None,
    alpha: str | None,
    threads: int | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    rank: int | None,
    energy: float | None,
    total_rank: int | None,
    size: str | None,
    **settings: Any,
) -> None:
    """Make one adapter smaller, losing as little of it as its size allows.

    Give one of --rank, --energy, --total-rank and --size. The result is the best of that rank in every
    module, as `combine --method svd` of this one adapter.

    \b
    Example:
      loramerge resize a.safetensors --size 1MB --profile compact -o small.safetensors
    """
    if quiet and as_json:
        raise click.UsageError("--json and --quiet both decide what is printed: give one of them.")
    keep_freed_memory()
    effort, bare = Effort(threads), None if out is None else output.is_bare(out)
    sizes = {"rank": rank, "energy": energy, "total_rank": total_rank, "size": size}
    given = values.alphas((alpha,) if alpha else ())
    todo = resizing(source, sizes, effort, alpha=given, bare=bare, **settings)
    out = out or todo.default_out("resized")
    if dry_run:
        check_output(out, overwrite, folder=not output.is_bare(out))
        todo.check_destination(out)
        return show_plan(todo, out, effort, as_json, quiet)
    merge = run(todo, out, overwrite=overwrite, effort=effort, progress=show.progress)
    return show_merge(merge, todo, out, as_json, quiet)
