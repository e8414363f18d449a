"""How many units each module of an extracted adapter has: a rank, a share of its energy, or a budget's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.patterns.search import searcher
from loramerge.arrays import dtypes
from loramerge.arrays.workers import workers
from loramerge.checkpoints.adapter import adapter as adapter_of
from loramerge.checkpoints.deltas import of_all
from loramerge.checkpoints.difference import Module, Pair, name_of
from loramerge.checkpoints.tuned import RANK
from loramerge.errors import UsageError, printable, say
from loramerge.formats import writer
from loramerge.formats.dialects import Dialect
from loramerge.formats.output import Outline, file_size
from loramerge.formats.peft.profiles import Profile, check_profile
from loramerge.merge.tables import counted
from loramerge.request.budgets import Budget, Market, largest, share, share_bytes
from loramerge.request.progress import Stage
from loramerge.request.request import Request

SPARE = 4  # times the rank that all could have: more than that one module is never given
HELD = 24  # bytes for an entry of a module while it is looked at


@dataclass(frozen=True, eq=False)
class Draft:
    """What an adapter of some modules will be, before it is written.

    Args:
        pair: the tuned model and its base.   request: what was asked.   name: of the adapter.
    """

    pair: Pair
    request: Request
    name: str

    @cached_property
    def profile(self) -> Profile:
        """Whether all modules have one rank, or each its own."""
        return check_profile(self.request.profile or "portable")

    @cached_property
    def kind(self) -> str:
        """The type of the output: that asked for, else the widest of the tuned weights."""
        if self.request.dtype is not None:
            return dtypes.parse(self.request.dtype)
        found = {self.pair.tuned.tensors[tuned.key].dtype for tuned, _ in self.pair.weights}
        return dtypes.widest({kind if kind in dtypes.FLOATS else "BF16" for kind in found})

    def dialect(self, whole: Adapter) -> Dialect:
        """The format of the output, bound to the model that the base is."""
        model = replace(whole, slots={**of_all(self.pair).slots, **whole.slots})
        return writer.written([model], self.request.format)

    def outline(self, whole: Adapter) -> Outline:
        """What is written of an adapter of these models."""
        dialect = self.dialect(whole)
        extras = self.request.extras
        return writer.outlined(dialect.adopt(whole), dialect, self.kind, extras, self.profile)

    def cost(self, modules: Sequence[Module], budget: Budget, bare: bool) -> float:
        """What an adapter of these modules takes of a budget."""
        changed = [module for module in modules if len(module.squares)]
        if not budget.in_bytes:
            return float(sum(len(module.squares) for module in changed))
        whole = adapter_of(self.pair, changed, (), self.name)
        return file_size(self.outline(whole), bare)


@dataclass(frozen=True, eq=False)
class Ranks:
    """All modules of a pair of models, each with as many units as the user asked for.

    Args:
        draft: the adapter.   rank: units in every module.   energy: the share that is kept of each.
        bare: the adapter will be one file.
    """

    draft: Draft
    rank: int | None
    energy: float | None
    bare: bool

    def modules(self) -> list[Module]:
        """Those of the size asked for."""
        budget = Budget.of(self.draft.request.total_rank, self.draft.request.size)
        if budget is not None:
            return self._within(budget)
        if self.energy is None:
            return self._looked_at(self.rank or RANK, None)
        found = self._looked_at(None, self.energy)
        most = max((len(module.squares) for module in found), default=0)
        alike = all(len(module.squares) in (0, most) for module in found)
        return found if self.draft.profile == "compact" or alike else self._looked_at(most, None)

    def _looked_at(self, rank: int | None, share: float | None) -> list[Module]:
        pair, request = self.draft.pair, self.draft.request
        pairs = _chosen(pair, request)
        most = max(prod(tuned.shape) for tuned, _ in pairs) * HELD
        count = request.effort.holding(most).workers
        with (
            Stage(request.tell, "extracting", len(pairs)) as stage,
            workers(count, stage.tick) as run,
        ):

            def look(each: Any) -> Module:
                found = pair.module(each, rank, share)
                stage.step()
                return found

            return list(run(look, pairs))

    def _within(self, budget: Budget) -> list[Module]:
        """Modules of ranks that this budget pays for."""
        candidates = self._looked_at(1, None)
        even = largest(4096, lambda k: self._cost([_sized(m, k) for m in candidates], budget) <= budget.limit)
        changed = [module for module in candidates if len(module.squares)]
        if (least := self._cost(changed, budget)) > budget.limit:
            size = f"{least:.0f}{' bytes' if budget.in_bytes else ''}"
            raise UsageError(
                f"{budget} is too little for rank 1 in {counted(len(changed), 'module')}, all that differ: "
                f"it would be {size}. Give it that much, or leave modules out with {say('only')} or "
                f"{say('exclude')}"
                + (f", or take a smaller {say('dtype').rstrip('=')}." if budget.in_bytes else ".")
            )
        compact = self.draft.profile == "compact"
        found = self._looked_at(SPARE * even if compact else even, None)
        return self._shared(found, budget) if compact else found

    def _shared(self, found: list[Module], budget: Budget) -> list[Module]:
        """With the units of a budget where they keep most."""
        changed = [module for module in found if len(module.squares)]
        gains = [module.squares for module in changed]
        width = dtypes.FLOATS[self.draft.kind].itemsize
        costs = np.array([sum(m.shape) * width if budget.in_bytes else 1.0 for m in changed])
        market = Market(gains, costs, np.ones(len(changed), int))

        def cut(units: np.ndarray) -> list[Module]:
            return [module.cut(int(k)) for module, k in zip(changed, units, strict=True)]

        if budget.in_bytes:
            units = share_bytes(market, budget.limit, lambda units: self._cost(cut(units), budget))
        else:
            units = share(market, budget.limit)
        ranks = {m.target: m for m in cut(units)}
        return [ranks.get(module.target, module) for module in found]

    def _cost(self, modules: Sequence[Module], budget: Budget) -> float:
        return self.draft.cost(modules, budget, self.bare)


def check_size(request: Request, rank: int | None, energy: float | None) -> None:
    """Before a model is read. Raises UsageError: two sizes, or one that is not a size."""
    sizes = {"rank": rank, "energy": energy, "total_rank": request.total_rank, "size": request.size}
    given = [say(name, value) for name, value in sizes.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} both set the size: give one of them.")
    if rank is not None and rank < 1:
        raise UsageError(f"{say('rank', rank)} must be at least 1.")
    if energy is not None and not 0 < energy <= 1:
        raise UsageError(f"{say('energy', energy)} must be above 0 and at most 1.")
    check_profile(request.profile or "portable")


def chooser(request: Request) -> Callable[[str], bool]:
    """Whether a name is taken, by `only` and `exclude`."""
    only = searcher(request.only, say("only")) if request.only is not None else None
    exclude = searcher(request.exclude, say("exclude")) if request.exclude is not None else None
    return lambda name: (only is None or bool(only(name))) and not (exclude is not None and exclude(name))


def _chosen(pair: Pair, request: Request) -> list[Any]:
    """The weights that `only` and `exclude` leave. Raises UsageError: none, or one says nothing."""
    names, chosen = [str(tuned.target) for tuned, _ in pair.weights], chooser(request)
    found = [each for each, name in zip(pair.weights, names, strict=True) if chosen(name)]
    some, exclude = printable(min(names, default="none")), request.exclude
    others = map(name_of, pair.tuned.tensors)  # norms, biases, embeddings
    if exclude is not None and not any(map(searcher(exclude, say("exclude")), (*names, *others))):
        raise UsageError(f"{say('exclude', exclude)} matches no module; one here is called {some}.")
    if not found:
        ways = f"{say('only')} and {say('exclude')}"
        raise UsageError(f"No module is left by {ways}; a module here is called {some}.")
    return found


def _sized(module: Module, rank: int) -> Module:
    """As if it had so many units, for their bytes alone."""
    if not len(module.squares):
        return module
    k = min(rank, min(module.shape))
    up = np.broadcast_to(np.float32(0), (module.shape[0], k))
    down = np.broadcast_to(np.float32(0), (k, module.shape[1]))
    return replace(module, squares=np.zeros(k), up=up, down=down)
