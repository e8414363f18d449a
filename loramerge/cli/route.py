"""`loramerge route`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from loramerge.arrays.backend import keep_freed_memory
from loramerge.cli import show
from loramerge.cli.groups import SOURCE, Command, Offered
from loramerge.cli.options import asks, typed
from loramerge.cli.results import Printed, check_printed
from loramerge.cli.spec import specs
from loramerge.errors import printable
from loramerge.hub.escape import shell
from loramerge.request.recipe import Recipe
from loramerge.routing.bundle import Bundle
from loramerge.routing.gates.names import GATES, free, name_of
from loramerge.routing.rows import read_rows
from loramerge.verbs.route import routed

DEFAULT = "arrow"


class GateCommand(Command):
    """A command whose options include those of all gates; the gate that was named says which it takes."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        *params, help = super().get_params(ctx)
        return [*params, *_options(), help]


def _options() -> list[click.Option]:
    """One option for each name that a gate knows."""
    found: dict[str, click.Option] = {}
    for name in free():
        flags = {f.name: f for f in dataclasses.fields(GATES[name]) if f.type == "bool"}
        for spec in specs(GATES[name]):  # type: ignore[arg-type]  # a gate declares options as a method does
            if spec.name not in found:
                found[spec.name] = spec.option() if spec.name not in flags else _flag(spec.name, spec.help)
    for name, option in found.items():
        owners = [gate for gate in free() if name in GATES[gate].names()]
        defaults = {GATES[gate].__dataclass_fields__[name].default for gate in owners}
        option.default, option.show_default = None, False
        shown = f"  [default: {defaults.pop()}]" if len(defaults) == 1 and defaults != {None} else ""
        option.help = f"{option.help} For {', '.join(owners)}.{shown}"
    return list(found.values())


def _flag(name: str, help: str) -> click.Option:
    return click.Option([f"--{name.replace('_', '-')}", name], is_flag=True, default=None, help=help)


@click.command(cls=GateCommand)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...", type=SOURCE)
@click.option("--gate", type=Offered(*free()), default=DEFAULT, show_default=True, metavar="NAME",
    help=f"{', '.join(free())}; docs/routing.md explains them.")  # fmt: skip
@click.option("--table", type=click.Path(path_type=Path), metavar="FILE", help="The rows of the gate table: "
    "a .json, .npz or .safetensors with one weight for each source under each name.")  # fmt: skip
@click.option("--subtract", type=SOURCE, multiple=True, metavar="SOURCE", help="An adapter of what all tasks "
    "share; the mean of these updates is subtracted from every source (GenKnowSub).")  # fmt: skip
@asks("route")
@click.option("--json", "as_json", is_flag=True, help="Print what is in the bundle as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the path of the output.")
@click.pass_context
def route(ctx: click.Context, /, sources: tuple[str, ...], gate: str, **given: Any) -> None:
    """Keep adapters apart in a bundle, with a gate that weighs them for each token.

    The adapters may differ in rank, alpha and target modules. The bundle is a folder: PEFT's
    create_arrow_model loads the adapters in it, and loramerge.routing.torch runs any gate. A SOURCE that
    brings its own gate (MeteoRA, LoRAMoE, SMoRA, …) must be the only one.

    \b
    Example:
      loramerge route a.safetensors b.safetensors --gate arrow --top-k 1 -o bundle
    """
    printed, asked = check_printed(given), typed(ctx, "route")
    keep_freed_memory()
    asked.setdefault("out", Path("bundle"))
    options = {name: given[name] for name in _names() if given.get(name) is not None}
    if given["table"] is not None:
        options["rows"] = read_rows(given["table"])
    recipe = Recipe.of("route", sources, None, {**asked, "progress": show.bar()})
    chosen = gate if ctx.get_parameter_source("gate") is not click.core.ParameterSource.DEFAULT else None
    bundle = routed(recipe, chosen, options, given["subtract"])
    return show_bundle(bundle, asked["out"], printed)


def _names() -> set[str]:
    return {name for gate in free() for name in GATES[gate].names()} - {"weights"}


def show_bundle(bundle: Bundle, out: Path, printed: Printed) -> None:
    """What is in a bundle, and where it lies."""
    if printed == "path":
        return click.echo(str(out))
    if printed == "json":
        return show.data({"out": str(out), "notes": list(bundle.notes), "bundle": dict(bundle.record)})
    for note in bundle.notes:
        show.note(f"note: {note}")
    click.echo(str(bundle))
    count = f"{len(bundle.experts)} expert{'s' if len(bundle.experts) != 1 else ''}"
    show.note(f"wrote {printable(out)}: gate {name_of(bundle.gate)}, {count}")
    if bundle.record.get("weights"):
        show.note(f"note: every token gets the same weights, so `loramerge combine {shell(out)}` merges it")
    return None
