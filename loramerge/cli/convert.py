"""`loramerge convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loramerge.cli import show
from loramerge.cli.catalogue import ALSO, WORDS
from loramerge.cli.groups import SOURCE, Command
from loramerge.cli.options import asks, typed
from loramerge.cli.results import check_printed
from loramerge.cli.word import Word
from loramerge.errors import printable
from loramerge.verbs.convert import convert as convert_adapter


@click.command(cls=Command)
@click.argument("source", metavar="SOURCE", type=SOURCE)
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--to", type=Word(WORDS["format"], ALSO["format"]), help="The format of OUT, the program that "
    "will read it, or a spelling of docs/formats.md.  [default: that of SOURCE]")  # fmt: skip
@click.option("--pruned", type=click.Path(path_type=Path), metavar="DIR", help="The indices by which "
    "LoRAM pruned the model; the adapter gets the sizes of the whole model, which --base names.")  # fmt: skip
@asks("convert")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the path of the output.")
@click.pass_context
def convert(
    ctx: click.Context, /, source: str, out: Path, to: str | None, pruned: Path | None, **given: Any
) -> None:
    """Write an adapter in another format. Every module keeps its update.

    OUT is one file if it ends in .safetensors, else a folder. Before OUT appears, every module is read back
    and compared with the source. If SOURCE has that format already, its tensors are copied as they are.

    \b
    Example:
      loramerge convert kohya.safetensors diffusers.safetensors --to diffusers
    """
    printed = check_printed(given)
    done = convert_adapter(source, out, to, pruned=pruned, progress=show.bar(), **typed(ctx, "convert"))
    if printed == "json":
        return show.data(done.to_dict())
    if printed == "path":
        return click.echo(str(out))
    for note in (*done.source.oddities, *done.notes):
        show.note(f"note: {note}")
    click.echo(str(done))
    return show.note(f"wrote {printable(out)}")
