"""Merge adapters into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loramerge.algorithms import Method
from loramerge.errors import IncompatibleError, LoramergeError, UsageError
from loramerge.formats.output import is_bare
from loramerge.merge.full import check_low
from loramerge.merge.plan import Plan
from loramerge.merge.planner import planned
from loramerge.merge.run import Merge, run
from loramerge.request.recipe import Recipe, Source
from loramerge.request.rules import Weight
from loramerge.request.signature import spelled
from loramerge.sources.failures import OneFrame
from loramerge.sources.open import is_of_hub, open_all


@spelled("combine", options=True)
def combine(
    sources: Sequence[Source],
    method: str | Method | None = None,
    *,
    weights: Sequence[Weight] | None = None,
    out: str | Path | None = None,
    **asked: Any,
) -> Merge:
    """Merge adapters into one adapter.

    Args:
        sources: paths (a PEFT folder or a bare .safetensors), names on the Hub, or `Adapter` values.
        method: a name in ``loramerge.METHODS`` with its `options`, or a method such as ``Lego(rank=16)``.
            By default ``level``; ``linear``, the weighted sum, of one source or with weights.
        weights: one number per source, 1 each by default; they may be negative. Or a `Ramp` over depth.
        out: write there: one file if it ends in .safetensors, else a PEFT folder. None: keep in memory.
        {asked}
        options: options of the method, if it is given by name.

    Returns:
        Merge: the adapter (read from `out` if given), the report, the settled method.

    Raises:
        UsageError, SourceError, IncompatibleError, OutputError: each says what is wrong and what to do.
        VerificationError: the merge that was read back is not the one decided; `out` stays as it was.

    >>> import numpy as np
    >>> from loramerge import Target, from_state_dict
    >>> unit = {"base_model.model.q.lora_A.weight": np.ones((1, 2)),
    ...         "base_model.model.q.lora_B.weight": np.ones((2, 1))}
    >>> merge = combine([from_state_dict(unit, alpha=1), from_state_dict(unit, alpha=3)], "svd", rank=1)
    >>> merge.adapter[Target("q")].dense().round(12)
    array([[4., 4.],
           [4., 4.]])
    """
    recipe = Recipe.of("combine", sources, method, {"weights": weights, "out": out, **asked})
    bare = recipe.request.out is None or is_bare(recipe.request.out)
    recipe = recipe.asking(bare=bare)
    plan = planned(recipe) if recipe.request.out is None else planned_alike(recipe)
    check_low(plan)
    if not plan.request.keep_form:
        return run(plan)
    from loramerge.verbs.keep_form import kept  # few merges keep a form

    return kept(plan)


def as_run(recipe: Recipe) -> Recipe:
    """The recipe with the method that runs where nobody names one, as far as files that are here tell it."""
    if recipe.method is None and not any(map(is_of_hub, recipe.sources)):
        try:
            open_all(recipe.sources, replace(recipe.request, base=None))  # a base may have to be fetched
        except OneFrame:
            return _averaged(recipe)
        except LoramergeError:
            pass  # it is told where they are merged
    return recipe


def _averaged(recipe: Recipe) -> Recipe:
    """Of FlyLoRA: the mean, unless a method is named."""
    return replace(recipe, method="average") if recipe.method is None else recipe


def planned_alike(recipe: Recipe) -> Plan:
    """The plan of a merge that is written. Of FlyLoRA, whose gate no plain adapter has, it stays FlyLoRA.

    Raises:
        UsageError, SourceError, IncompatibleError: a sentence each.
    """
    try:
        return planned(recipe)
    except OneFrame as error:
        if recipe.method not in (None, "average", "linear"):
            raise
        told = error
    from loramerge.verbs.keep_form import check_asked  # few merges keep a form

    plan = planned(_averaged(recipe.asking(keep_form=True)))
    try:
        check_asked(plan)
    except UsageError as error:  # nobody has said that the form is kept
        raise IncompatibleError(f"{told} But {error}") from None
    stays = "they are of FlyLoRA, and so is their merge: the A of all, the mean of B and of their gates"
    return replace(plan, notes=(*plan.notes, stays))
