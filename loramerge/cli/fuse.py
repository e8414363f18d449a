"""`loramerge fuse`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loramerge.arrays.backend import keep_freed_memory
from loramerge.cli import show
from loramerge.cli.groups import SOURCE, Command
from loramerge.cli.options import asks, typed
from loramerge.cli.results import check_printed, show_done
from loramerge.verbs.fuse import fuse as fuse_adapter


@click.command(cls=Command)
@click.argument("adapter", metavar="ADAPTER", type=SOURCE)
@click.argument("base", metavar="BASE", type=SOURCE)
@click.option("--subtract", is_flag=True, help="Take the adapter out of a model that it was fused into.")
@asks("fuse")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the path of the output.")
@click.pass_context
def fuse(ctx: click.Context, /, adapter: str, base: str, subtract: bool, **given: Any) -> None:
    """Write BASE with ADAPTER added to its weights: a model that needs no adapter.

    BASE is a folder as transformers or diffusers writes it, a single .safetensors of Stable Diffusion or
    Flux, or a name on the Hub. The result has the same files, names and types.

    \b
    Example:
      loramerge fuse adapter base-model -o fused
    """
    printed, asked = check_printed(given), typed(ctx, "fuse")
    keep_freed_memory()
    asked.setdefault("out", Path("fused"))
    show_done(fuse_adapter(adapter, base, subtract=subtract, progress=show.bar(), **asked), printed)
