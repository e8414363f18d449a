"""`loramerge extract`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loramerge.arrays.backend import keep_freed_memory
from loramerge.cli import show
from loramerge.cli.groups import SOURCE, Command
from loramerge.cli.number import Number
from loramerge.cli.options import asks, typed
from loramerge.cli.results import check_printed, show_done
from loramerge.verbs.extract import extract as extract_adapter


@click.command(cls=Command)
@click.argument("tuned", metavar="TUNED", type=SOURCE)
@click.argument("base", metavar="BASE", type=SOURCE)
@click.option("--rank", type=click.IntRange(min=1), help="Units in every module.  [default: 32]")
@click.option("--energy", type=Number(0, 1, low_open=True),
    help="Instead of a rank: as many units as keep this share of ‖ΔW‖² in every module.")  # fmt: skip
@asks("extract")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the path of the output.")
@click.pass_context
def extract(ctx: click.Context, /, tuned: str, base: str, **given: Any) -> None:
    """Take an adapter out of a tuned model: what it adds to its base, as nearly as its rank allows.

    TUNED and BASE are folders as transformers or diffusers writes them, single .safetensors of Stable
    Diffusion or Flux, or names on the Hub. They are read module by module.

    \b
    Example:
      loramerge extract tuned-model base-model --rank 16 --extras drop -o adapter
    """
    printed, asked = check_printed(given), typed(ctx, "extract")
    keep_freed_memory()
    asked.setdefault("out", Path("extracted"))
    asked["progress"] = show.bar()
    done = extract_adapter(tuned, base, rank=given["rank"], energy=given["energy"], **asked)
    show_done(done, printed)
