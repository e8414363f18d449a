"""What was asked for on the command line, in the place of what a recipe says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from loramerge.algorithms import find
from loramerge.cli import show
from loramerge.cli.downloads import listed
from loramerge.errors import UsageError, printable
from loramerge.request.recipe import Ingredient, Recipe, read
from loramerge.request.schedule import Weight
from loramerge.sources.expand import left_aside
from loramerge.sources.open import Alphas

RIVALS = (
    {"rank", "energy", "total_rank", "size"},
)  # one of them given on the command line puts the other away


def asked(
    ctx: click.Context,
    recipe: Path | None,
    sources: Sequence[str],
    weights: Sequence[Weight] | None,
    alpha: Alphas,
    settings: dict[str, Any],
) -> Recipe:
    """The recipe of this command, its collections expanded."""
    written = read(recipe) if recipe else Recipe()
    if not sources and not written.sources:
        raise click.UsageError("Missing argument 'SOURCE...': name adapters, or a --recipe that does.")
    said = {k: v for k, v in settings.items() if ctx.get_parameter_source(k) is ParameterSource.COMMANDLINE}
    if settings["descriptions"]:  # of two options, the one or the other
        said["descriptions"] = settings["descriptions"]
    named = tuple(Ingredient(source) for source in sources) or written.sources
    named = tuple(replace(each, source=source) for each in named for source in listed(each.source))
    fields = find(ctx.meta["method"]).names()
    own = {name: said.pop(name) for name in list(said) if name in fields}
    for rivals in RIVALS:
        if rivals & (own.keys() | said.keys()):
            written = _without(written, rivals)
    parameters = {**_kept(written, ctx.meta["method"]), **own}
    whole = replace(written, sources=named, method=ctx.meta["method"], parameters=parameters, **said)
    for each in named:
        _tell(each.source)
    return _weighed(replace(whole, alpha=alpha if alpha is not None else written.alpha).expanded(), weights)


def _without(written: Recipe, names: set[str]) -> Recipe:
    """The recipe without these settings and parameters."""
    kept = {name: value for name, value in written.parameters.items() if name not in names}
    away: dict[str, Any] = dict.fromkeys(names & {"total_rank", "size"})
    return replace(written, parameters=kept, **away)


def _kept(written: Recipe, method: str) -> dict[str, Any]:
    """The recipe's parameters, as far as they are for this method."""
    kept = dict(written.parameters)
    foreign = [name for name in kept if name not in find(method).names()]
    if method == (written.method or method) or not foreign:
        return kept
    show.note(f"note: {printable(', '.join(foreign))} of the recipe is not for {method}, so it is not used")
    return {name: value for name, value in kept.items() if name not in foreign}


def _weighed(recipe: Recipe, weights: Sequence[Weight] | None) -> Recipe:
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
        show.note(f"note: {printable(source)} also holds {some}{more}, which is no adapter")
