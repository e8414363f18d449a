"""`loramerge convert`."""

from __future__ import annotations

from pathlib import Path

import click

from loramerge.cli import show, values
from loramerge.cli.options import PICKLE_HELP
from loramerge.formats.dialects import FORMATS
from loramerge.formats.peft.profiles import PROFILES
from loramerge.verbs.convert import convert as convert_adapter


@click.command()
@click.argument("source", metavar="SOURCE")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--to", type=click.Choice(FORMATS), required=True, help="The format of OUT.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16", "float64"]),
    help="Number type of the output.  [default: that of the source]")  # fmt: skip
@click.option("--profile", type=click.Choice(PROFILES), help="compact: each module keeps its own "
    "rank. portable: all have the largest one.  [default: compact for kohya and diffusers, else "
    "portable]")  # fmt: skip
@click.option("--alpha", "alpha", metavar="A", help="The training alpha, if the file does not say it: a "
    "number, or `rank` for scale 1.")  # fmt: skip
@click.option("--only", metavar="REGEX", help="Only modules whose name matches.")
@click.option("--exclude", metavar="REGEX", help="Leave out modules whose name matches.")
@click.option("--extras", type=click.Choice(["refuse", "first", "drop"]), default="refuse", show_default=True,
    help="What to do with other tensors, such as heads and biases: keep them (first) or leave them out "
    "(drop).")  # fmt: skip
@click.option("--allow-pickle", is_flag=True, help=PICKLE_HELP)
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the path of the output.")
def convert(
    source: str,
    out: Path,
    to: str,
    dtype: str | None,
    profile: str | None,
    alpha: str | None,
    only: str | None,
    exclude: str | None,
    extras: str,
    allow_pickle: bool,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write an adapter in another format. Every module keeps its update.

    OUT is one file if it ends in .safetensors, else a folder. Before OUT appears, every module is read back
    and compared with the source. If SOURCE has that format already, its tensors are copied as they are.

    \b
    Example:
      loramerge convert kohya.safetensors diffusers.safetensors --to diffusers
    """
    if quiet and as_json:
        raise click.UsageError("--json and --quiet both decide what is printed: give one of them.")
    done = convert_adapter(
        source,
        out,
        to,
        dtype=dtype,
        profile=profile,
        alpha=values.alphas((alpha,) if alpha else ()),
        allow_pickle=allow_pickle,
        only=only,
        exclude=exclude,
        extras=extras,
        overwrite=overwrite,
    )
    if as_json:
        return show.data(done.to_dict())
    if quiet:
        return click.echo(str(out))
    for note in (*done.source.oddities, *done.notes):
        show.note(f"note: {note}")
    click.echo(str(done))
    return None
