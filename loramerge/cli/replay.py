"""`loramerge replay`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from loramerge.arrays.backend import keep_freed_memory
from loramerge.cli import show, values
from loramerge.cli.groups import SOURCE, Command
from loramerge.cli.options import asks, typed
from loramerge.cli.results import check_printed, facts_of, what
from loramerge.errors import printable
from loramerge.request.request import Request
from loramerge.verbs.diff import Difference
from loramerge.verbs.replay import Replay, Search, done, replayed


@click.command(cls=Command)
@click.argument("record", type=click.Path(path_type=Path), metavar="RECORD")
@click.option("--source", "sources", type=SOURCE, multiple=True, metavar="[NAME=]PATH",
    help="Where a source is, if neither beside the record nor here; or a folder to look in.")  # fmt: skip
@asks("replay")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the path of the output.")
@click.pass_context
def replay(ctx: click.Context, /, record: Path, sources: tuple[str, ...], **given: Any) -> None:
    """Repeat a recorded merge, from the same sources.

    RECORD is a loramerge.json, the folder that holds it, or a .safetensors written by combine. Every source
    must have the SHA-256 that the record names (else exit 3). The tensors get the same bytes on the same
    platform and versions. A record says what was merged and how; no path in it is followed.

    \b
    Example:
      loramerge replay merged/loramerge.json -o again --source a=/data/a
    """
    printed = check_printed(given)
    todo = replayed(record, Search(*_places(sources)), Request(**typed(ctx, "replay"), progress=show.bar()))
    out = todo.plan.request.out or Path("replayed.safetensors" if todo.bare else "replayed")
    keep_freed_memory()
    merge = done(todo.plan.asking(out=out))
    if printed == "path":
        return click.echo(str(out))
    found = todo.compare(merge)
    if printed == "json":
        facts = facts_of(merge, todo.plan, out)
        told = {"notes": [*todo.notes, *facts["notes"]], "difference": found and found.to_dict()}
        return show.data({**facts, **told})
    for note in (*todo.notes, *merge.report.notes):
        show.note(f"note: {note}")
    click.echo(str(merge.report))
    click.echo(_verdict(todo, found))
    show.note(f"wrote {what(todo.plan, out)}")
    return None


def _places(texts: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """`NAME=PATH` and folders to look in."""
    named, folders = {}, []
    for text in texts:
        name, path = values.named_path(text)
        if name and path:
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
