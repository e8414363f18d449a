"""What was asked for on the command line, in the place of what a recipe says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from loramerge.algorithms import find, make
from loramerge.checkpoints.tuned import Tuned
from loramerge.cli import show
from loramerge.cli.downloads import listed
from loramerge.cli.options import typed
from loramerge.errors import UsageError, printable
from loramerge.formats.output import is_bare
from loramerge.request.recipe import Ingredient, Recipe
from loramerge.sources.bundles import check_row
from loramerge.sources.expand import expanded, left_aside

SIZES = {"rank", "energy", "total_rank", "size", "energy_per_module"}  # one typed puts the others away


def asked(ctx: click.Context, file: Path | None, sources: Sequence[str]) -> Recipe:
    """The recipe of this command, its collections expanded."""
    written = _read(file) if file else Recipe()
    if not sources and not written.sources:
        raise click.UsageError("Missing argument 'SOURCE...': name adapters, or a --recipe that does.")
    fields, own = typed(ctx, "command"), _own(ctx)
    if SIZES & (own.keys() | fields.keys()):
        written = _without_size(written)
    named = tuple(Ingredient(source) for source in sources) or written.sources
    named = tuple(member for each in named for member in _listed(each))
    for each in named:
        if not isinstance(each.source, Tuned):
            _tell(str(each.source))
    kept = _kept(written, ctx.meta["method"])
    _check_work({name: value for name, value in kept.items() if name not in own}, file, ctx)
    parameters = {**kept, **own}
    weights = fields.pop("weights", None)
    check_row(fields.get("row"), weights)
    whole = replace(written, sources=named, method=ctx.meta["named"], parameters=parameters)
    out = fields.get("out")
    return _weighed(expanded(whole.asking(bare=None if out is None else is_bare(out), **fields)), weights)


def _read(file: Path) -> Recipe:
    from loramerge.request.recipe_text import read  # for those who have a recipe

    return read(file)


def _check_work(asked: Mapping[str, Any], file: Path | None, ctx: click.Context) -> None:
    """What the recipe asks of the method is done, if it is no more than usual or the user allows it."""
    if file is not None and asked:
        from loramerge.request.strangers import check_work

        method = make(ctx.meta["method"], asked)
        for note in check_work(method, ctx.params["allow_work"], f"the recipe {file}"):
            show.note(f"note: {note}")


def _listed(each: Ingredient) -> list[Ingredient]:
    """The members of a list on the Hub in its place."""
    if isinstance(each.source, Tuned):
        return [each]
    return [replace(each, source=source) for source in listed(str(each.source))]


def _own(ctx: click.Context) -> dict[str, Any]:
    """Options of the method that were typed."""
    return {
        name: ctx.params[name]
        for name in find(ctx.meta["method"]).names()
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }


def _without_size(written: Recipe) -> Recipe:
    """The recipe without what it says of the size."""
    kept = {name: value for name, value in written.parameters.items() if name not in SIZES}
    return replace(written.asking(total_rank=None, size=None, energy_per_module=None), parameters=kept)


def _kept(written: Recipe, method: str) -> dict[str, Any]:
    """The recipe's parameters, as far as they are for this method."""
    kept = find(method).current(written.parameters)
    foreign = [name for name in kept if name not in find(method).names()]
    if method == (written.method or method) or not foreign:
        return kept
    show.note(f"note: {printable(', '.join(foreign))} of the recipe is not for {method}, so it is not used")
    return {name: value for name, value in kept.items() if name not in foreign}


def _weighed(recipe: Recipe, weights: Sequence[float] | None) -> Recipe:
    """With the weights of the command line, one for each source."""
    if weights is None:
        return recipe
    if len(weights) != len(recipe.sources):
        raise UsageError(
            f"{len(weights)} weights for {len(recipe.sources)} adapters: give one weight for each."
        )
    pairs = zip(recipe.sources, weights, strict=True)
    return replace(recipe, sources=tuple(replace(each, weight=weight) for each, weight in pairs))


def _tell(source: str) -> None:
    if aside := left_aside(source):
        more = f" and {len(aside) - 3} more" if len(aside) > 3 else ""
        some = ", ".join(printable(name, 40) for name in aside[:3])
        show.note(f"note: {printable(source)} also holds {some}{more}, which is not an adapter")
