"""`loramerge replay`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from loramerge.arrays.backend import keep_freed_memory
from loramerge.cli import show
from loramerge.cli.options import PICKLE_HELP
from loramerge.errors import printable
from loramerge.merge.run import run
from loramerge.verbs.diff import Difference
from loramerge.verbs.replay import Replay, prepare


@click.command()
@click.argument("record", type=click.Path(path_type=Path), metavar="RECORD")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Where to write: NAME.safetensors for one "
    "file, another name for a PEFT folder.  [default: replayed.safetensors if the record is in a bare file, "
    "else replayed]")  # fmt: skip
@click.option("--source", "sources", multiple=True, metavar="[NAME=]PATH",
    help="Where a source lies that is not beside the record or here, or a folder to look in.")  # fmt: skip
@click.option("--allow-pickle", is_flag=True, help=PICKLE_HELP)
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the path of the output.")
def replay(
    record: Path,
    out: Path | None,
    sources: tuple[str, ...],
    allow_pickle: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Do a recorded merge again, from the sources of then.

    RECORD is a loramerge.json, the folder it lies in, or a .safetensors written by combine. Every source
    must have the SHA-256 of then (else exit 3). The tensors have the same bytes on the same platform and
    versions. A record says what was merged and how; no path or place in it is followed.

    \b
    Example:
      loramerge replay merged/loramerge.json -o again --source a=/data/a
    """
    todo = prepare(record, *_places(sources), allow_pickle)
    out = out or Path("replayed.safetensors" if todo.bare else "replayed")
    keep_freed_memory()
    merge = run(todo.plan, out, overwrite=overwrite, progress=show.progress)
    if quiet:
        return click.echo(str(out))
    for note in (*todo.notes, *merge.report.notes):
        show.note(f"note: {note}")
    click.echo(str(merge.report))
    click.echo(_verdict(todo, todo.compare(merge)))
    show.note(f"wrote {printable(out)}")
    return None


def _places(texts: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """`NAME=PATH` and folders to look in."""
    named, folders = {}, []
    for text in texts:
        name, equals, path = text.partition("=")
        if equals and name and path:
            named[name] = path
        elif os.path.isdir(text):
            folders.append(text)
        else:
            raise click.UsageError(f"--source {text!r} is neither NAME=PATH nor a folder to look in.")
    return named, folders


def _verdict(todo: Replay, found: Difference | None) -> str:
    if found is None or todo.original is None:
        return "the recorded adapter is not here, so there is nothing to compare with"
    if found.largest == 0:
        return f"the same numbers as {printable(todo.original.name)}"
    return f"differs from {printable(todo.original.name)}: {found.summary()}"
