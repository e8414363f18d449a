"""`loramerge combine`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loramerge.cli.catalogue import METHODS
from loramerge.cli.groups import METHOD, SOURCE
from loramerge.cli.options import FILTER_HELP, MethodCommand, asks
from loramerge.request.default import SHOWN


@click.command(cls=MethodCommand)
@click.argument("sources", nargs=-1, metavar="SOURCE...", type=SOURCE)
@click.option("--method", metavar="NAME", type=METHOD,
    help=f"{', '.join(METHODS)}; see `loramerge methods`.  [default: {SHOWN}]")  # fmt: skip
@click.option("--hub-filter", "filters", multiple=True, metavar="KEY=VALUE", help=FILTER_HELP)
@click.option("--recipe", type=click.Path(path_type=Path), help="A YAML file with sources, "
    "weights, method, parameters, and weights or ranks by module. Options here override it.")  # fmt: skip
@click.option("--print-recipe", is_flag=True, help="Print this command as a recipe; merge nothing.")
@asks("command")
@click.option("--spread", type=click.Path(path_type=Path), metavar="FILE", help="Write how far sources "
    "of sg or average are apart in each entry of ΔW, as a dense .safetensors: 4 bytes a weight.")  # fmt: skip
@click.option("--report", "page", type=click.Path(path_type=Path), metavar="FILE", help="Write a page about "
    "this merge, as `loramerge report` does about sources.")  # fmt: skip
@click.option("--push", "repo", metavar="ORG/NAME", help="Also upload the merge to the Hub, with a card, "
    "as `loramerge push` does.")  # fmt: skip
@click.option("--private", is_flag=True, help="Make the repository of --push private.")
@click.option("--dense-delta", is_flag=True, help="Write full matrices ΔW instead of an adapter: one "
    "tensor for each parameter, in one .safetensors; as .diff in the formats kohya and comfy.")  # fmt: skip
@click.option("--fuse", "whole_model", metavar="BASE", type=SOURCE, help="Write a whole model instead of an "
    "adapter: BASE with the merge added to its weights, as `loramerge fuse` does.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what would be merged and written, and the error at "
    "other sizes; write nothing.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the path of the output.")
@click.pass_context
def combine(ctx: click.Context, /, **given: Any) -> None:
    """Merge adapters into one adapter.

    A SOURCE is a folder or a .safetensors file, in any format that loramerge reads. It may stand for many:
    a folder of adapters, a quoted glob, or @FILE with a source on each line, and perhaps its weight. If a
    path does not exist here, it is the name of a repository on the Hub: org/name, org/name@revision,
    hf://org/name@revision/path, hf://collections/owner/slug. Methods have options of their own:
    `loramerge combine --method lego --help` shows those of lego.

    \b
    Example:
      loramerge combine a.safetensors b.safetensors --rank 16 -o merged
    """
    from loramerge.cli.work import work  # help needs no numbers

    return work(ctx, given)
