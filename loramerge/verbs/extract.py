"""An adapter taken out of a whole tuned model: what it adds to its base, as low-rank updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.arguments import checked
from loramerge.adapters.patterns.search import searcher
from loramerge.arrays import dtypes
from loramerge.arrays.workers import workers
from loramerge.charts.facts import as_frame
from loramerge.checkpoints.deltas import of_all
from loramerge.checkpoints.difference import Beside, Module, Pair, name_of
from loramerge.checkpoints.extracted import adapter as adapter_of
from loramerge.checkpoints.open import open_checkpoint
from loramerge.checkpoints.tuned import RANK
from loramerge.checkpoints.write import check_outside
from loramerge.errors import IncompatibleError, UsageError, VerificationError, printable, say
from loramerge.formats import load, writer
from loramerge.formats.dialects import Dialect
from loramerge.formats.files.atomic import check_output
from loramerge.formats.output import Outline, file_size, is_bare
from loramerge.formats.peft.beside import told
from loramerge.formats.peft.profiles import check_profile
from loramerge.merge.tables import as_html, counted, headed
from loramerge.request.budgets import Budget, Market, largest, share, share_bytes
from loramerge.request.entry import part
from loramerge.request.progress import Stage
from loramerge.request.request import Request
from loramerge.request.signature import spelled
from loramerge.verbs.convert import check_close
from loramerge.verbs.diff import Difference, diff

SPARE = 4  # times the rank that all could have: more than that one module is never given
HELD = 24  # bytes for an entry of a module while it is looked at


@dataclass(frozen=True, eq=False)
class Extraction:
    """What `extract` returns: the adapter, and how much of the difference is in it.

    Args:
        adapter: read back, where it was written.   out: where it was written.
        modules: all that both models have.
        beside: tensors that differ, but of which no update is made.   kept: they were kept whole.
        names: of the tuned model and its base.
    """

    adapter: Adapter
    out: Path | None
    modules: tuple[Module, ...]
    beside: tuple[Beside, ...]
    kept: bool
    names: tuple[str, str]

    @cached_property
    def changed(self) -> list[Module]:
        """The modules that are in the adapter."""
        return [module for module in self.modules if len(module.squares)]

    @property
    def energy_lost(self) -> float:
        """Share of ‖ΔW‖², over the modules in the adapter, that is not in it."""
        return sum(m.lost for m in self.changed) / sum(m.energy for m in self.changed)

    @property
    def rounding(self) -> float:
        """Share of ‖ΔW‖² that the rounding of the stored weights explains by itself."""
        return min(1.0, sum(m.noise for m in self.changed) / sum(m.energy for m in self.changed))

    @property
    def notes(self) -> Iterator[str]:
        """Sentences that the user should read."""
        rounded = [str(module.target) for module in self.modules if module.rounded]
        rounded += [name_of(each.key) for each in self.beside if each.rounded]
        if rounded:
            yield (
                f"{_differ(len(rounded), 'tensor')} by no more than rounding, and nothing is extracted there "
                f"({told(rounded)})"
            )
        if 0 < self.energy_lost <= 2 * self.rounding:
            yield "what is lost is no more than the rounding of the weights"
        most = max((m.above for m in self.changed), default=0)
        if 0 < most < max(len(m.squares) for m in self.changed):
            yield f"no module has more than {counted(most, 'unit')} above what rounding makes"
        if others := [name_of(each.key) for each in self.beside if not each.rounded]:
            names, done = told(others), "kept whole" if self.kept else "left out"
            yield f"{_differ(len(others), 'other tensor')}: {done} ({names})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "out": None if self.out is None else str(self.out),
            "tuned": self.names[0],
            "base": self.names[1],
            "energy_lost": self.energy_lost,
            "rounding": self.rounding,
            "modules": [_told(module) for module in self.modules],
            "beside": [{"name": name_of(each.key), "norm": _norm(each.energy)} for each in self.beside],
            "kept": self.kept,
            "notes": list(self.notes),
        }

    def worst(self, count: int = 3) -> list[Module]:
        """The modules that lost the largest share of their energy."""
        return sorted(self.changed, key=lambda m: (-m.lost / m.energy, str(m.target)))[:count]

    def to_frame(self) -> Any:
        """A `pandas.DataFrame` with a row for each module; pandas must be installed."""
        return as_frame([_told(module) for module in self.modules])

    def _repr_html_(self) -> str:
        told = [_told(module) for module in self.worst(len(self.changed))]
        rows = [
            [each["name"], str(each["rank"]), f"{each['norm']:.4g}", f"{100 * each['energy_lost']:.3g} %"]
            for each in told
        ]
        return as_html(headed(["module", "rank", "norm", "energy lost"], rows), str(self).splitlines()[:2])

    def __repr__(self) -> str:
        many = f"{len(self.changed)} of {counted(len(self.modules), 'module')}"
        return f"<Extraction of {' minus '.join(map(printable, self.names))}: {many}>"

    def __str__(self) -> str:
        same = sum(not module.energy for module in self.modules)
        worst = ", ".join(f"{printable(m.target)} {100 * m.lost / m.energy:.3g} %" for m in self.worst())
        return "\n".join([
            f"{len(self.changed)} of {len(self.modules)} modules, {same} are the same in both models",
            f"energy lost {100 * self.energy_lost:.3g} %, of which rounding explains "
            f"{100 * min(1.0, self.rounding / self.energy_lost if self.energy_lost else 1.0):.3g} %",
            f"most lost in: {worst}",
        ])  # fmt: skip


def _differ(count: int, noun: str) -> str:
    return f"{counted(count, noun)} {'differs' if count == 1 else 'differ'}"


def _told(module: Module) -> dict[str, Any]:
    return {
        "name": str(module.target),
        "rank": len(module.squares),
        "norm": _norm(module.energy),
        "energy_lost": module.lost / module.energy if module.energy else None,
        "rounding": min(1.0, module.noise / module.energy) if module.energy else None,
        "above_rounding": module.above,
        "only_rounding": module.rounded,
    }


def _norm(energy: float | None) -> float | None:
    return None if energy is None else energy**0.5


@spelled("extract")
@checked("tuned", "base", "out", "rank", "energy")
def extract(
    tuned: str | Path,
    base: str | Path,
    out: str | Path | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    **asked: Any,
) -> Extraction:
    """The adapter that makes a base model into a tuned one, as nearly as its rank allows.

    Both are read module by module. Modules that are the same, or differ by rounding only, are left out.

    Args:
        tuned, base: folders as transformers or diffusers writes them, single files, or names on the Hub.
        out: as for `combine`; without it the adapter stays in memory.
        rank: units in every module; 32 if no size is asked for.
        energy: as many as keep this share of ‖ΔW‖² in every module.
        {asked}

    Raises:
        UsageError, SourceError, IncompatibleError, OutputError: a sentence each.
        VerificationError: a module was read back with another ΔW than rounding explains, or it is beyond a
            limit that you gave.
    """
    fields, _ = part("extract", None, asked)
    request = Request(**fields)
    where = Path(out) if out is not None else request.out
    return _Extractor(tuned, base, request, rank, energy).run(where)


class _Extractor:
    """One extraction under way."""

    def __init__(
        self, tuned: str | Path, base: str | Path, request: Request, rank: int | None, energy: float | None
    ) -> None:
        _check_sizes(request, rank, energy)
        self.request, self.rank, self.energy = request, rank, energy
        self.profile = check_profile(request.profile or "portable")
        self.pair = Pair(open_checkpoint(tuned), open_checkpoint(base))
        self.name = Path(str(tuned)).name or str(tuned)
        self.chosen = _chooser(request)

    def run(self, out: Path | None) -> Extraction:
        """Extract, write, read back."""
        bare = self.request.bare if out is None else is_bare(out)
        if out is not None:
            for model in (self.pair.tuned, self.pair.base):
                check_outside(model, out)
            check_output(out, self.request.overwrite, folder=not is_bare(out))
        beside = self._beside()
        modules = self._modules(beside, bool(bare))
        kept = [each for each in beside if not each.rounded] if self.request.extras == "first" else []
        whole = adapter_of(self.pair, modules, kept, self.name)
        dialect = self._dialect(whole)
        whole = dialect.adopt(whole)
        names = self.pair.tuned.name, self.pair.base.name
        found = Extraction(whole, out, tuple(modules), beside, bool(kept), names)
        self._check_limits(found)
        if out is not None:
            kind = self._kind
            writer.write(
                whole,
                writer.outlined(whole, dialect, kind, self.request.extras, self.profile),
                out,
                self.request.overwrite,
                lambda made: self._check_written(diff(whole, made), kind),
            )
            found = replace(found, adapter=load(out))
        return found

    def _check_limits(self, found: Extraction) -> None:
        """Raises VerificationError: it is beyond a limit that the user gave."""
        most, least = self.request.max_lost, self.request.min_cosine
        if most is not None and found.energy_lost > most:
            raise VerificationError(
                f"The adapter misses {found.energy_lost:.3g} of the energy of the difference, more than "
                f"{say('max_lost', most)}: give it a larger {say('rank').rstrip('=')}."
            )
        cosine = max(0.0, 1.0 - found.energy_lost) ** 0.5  # what is kept is a projection of the difference
        if least is not None and cosine < least:
            raise VerificationError(
                f"The cosine of the adapter with the difference is {cosine:.3f}, below "
                f"{say('min_cosine', least)}: give it a larger {say('rank').rstrip('=')}."
            )

    def _check_written(self, found: Difference, kind: str) -> None:
        """Raises VerificationError: rounding costs a module more than it may."""
        check_close(found, kind)
        worst, most = found.worst(1)[0], self.request.max_error
        if most is not None and not worst.error <= most:
            raise VerificationError(
                f"{printable(worst.name)} is off by {worst.error:.1e} of its norm after rounding, more than "
                f"{say('max_error', most)}: use a wider {say('dtype').rstrip('=')}."
            )

    def _dialect(self, whole: Adapter) -> Dialect:
        """The format of the output, bound to the model that the base is."""
        model = replace(whole, slots={**of_all(self.pair).slots, **whole.slots})
        return writer.written([model], self.request.format)

    @property
    def _kind(self) -> str:
        """The type of the output: that asked for, else the widest of the tuned weights."""
        if self.request.dtype is not None:
            return dtypes.parse(self.request.dtype)
        found = {self.pair.tuned.tensors[tuned.key].dtype for tuned, _ in self.pair.weights}
        return dtypes.widest({kind if kind in dtypes.FLOATS else "BF16" for kind in found})

    def _beside(self) -> tuple[Beside, ...]:
        """What differs beside the modules. Raises IncompatibleError: nobody has said what then."""
        found = tuple(self.pair.beside(self.chosen))
        real = [name_of(each.key) for each in found if not each.rounded]
        if real and self.request.extras == "refuse":
            raise IncompatibleError(
                f"{printable(self.pair.tuned.name)} also changes {counted(len(real), 'tensor')} of which no "
                f"low-rank update is made: norms, biases, embeddings ({told(real)}). Decide with "
                f"{say('extras')}: drop leaves them out, first keeps them whole, which vLLM and "
                "llama.cpp do not load."
            )
        return found

    def _modules(self, beside: Sequence[Beside], bare: bool) -> list[Module]:
        """All modules, of the size asked for."""
        budget = Budget.of(self.request.total_rank, self.request.size)
        if budget is not None:
            return self._within(budget, bare)
        if self.energy is None:
            return self._looked_at(self.rank or RANK, None)
        found = self._looked_at(None, self.energy)
        most = max((len(module.squares) for module in found), default=0)
        alike = all(len(module.squares) in (0, most) for module in found)
        return found if self.profile == "compact" or alike else self._looked_at(most, None)

    def _looked_at(self, rank: int | None, share: float | None) -> list[Module]:
        names = [str(tuned.target) for tuned, _ in self.pair.weights]
        pairs = [each for each, name in zip(self.pair.weights, names, strict=True) if self.chosen(name)]
        some, exclude = printable(min(names, default="none")), self.request.exclude
        if exclude is not None and not any(map(searcher(exclude, "exclude"), names)):
            raise UsageError(f"{say('exclude', exclude)} matches no module; one here is called {some}.")
        if not pairs:
            ways = f"{say('only')} and {say('exclude')}"
            raise UsageError(f"No module is left by {ways}; a module here is called {some}.")
        most = max(prod(tuned.shape) for tuned, _ in pairs) * HELD
        count = self.request.effort.holding(most).workers
        with (
            Stage(self.request.tell, "extracting", len(pairs)) as stage,
            workers(count, stage.tick) as run,
        ):

            def look(each: Any) -> Module:
                found = self.pair.module(each, rank, share)
                stage.step()
                return found

            return list(run(look, pairs))

    def _within(self, budget: Budget, bare: bool) -> list[Module]:
        """Modules of ranks that this budget pays for."""
        candidates = self._looked_at(1, None)
        even = largest(
            4096, lambda k: self._cost([_sized(m, k) for m in candidates], budget, bare) <= budget.limit
        )
        changed = [module for module in candidates if len(module.squares)]
        if self._cost(changed, budget, bare) > budget.limit:
            raise UsageError(
                f"{budget.name}={budget.limit:.0f} is too little for rank 1 in the {len(changed)} modules "
                f"that differ. Leave modules out with {say('only')} or {say('exclude')}."
            )
        found = self._looked_at(SPARE * even if self.profile == "compact" else even, None)
        if self.profile == "portable":
            return found
        return self._shared(found, budget, bare)

    def _shared(self, found: list[Module], budget: Budget, bare: bool) -> list[Module]:
        changed = [module for module in found if len(module.squares)]
        gains = [module.squares for module in changed]
        costs = np.array([sum(m.shape) * self._width if budget.in_bytes else 1.0 for m in changed])
        market = Market(gains, costs, np.ones(len(changed), int))

        def cut(units: np.ndarray) -> list[Module]:
            return [module.cut(int(k)) for module, k in zip(changed, units, strict=True)]

        if budget.in_bytes:
            units = share_bytes(market, budget.limit, lambda units: self._cost(cut(units), budget, bare))
        else:
            units = share(market, budget.limit)
        ranks = {m.target: m for m in cut(units)}
        return [ranks.get(module.target, module) for module in found]

    @property
    def _width(self) -> int:
        return dtypes.FLOATS[self._kind].itemsize

    def _cost(self, modules: list[Module], budget: Budget, bare: bool) -> float:
        """What an adapter of these modules takes of a budget."""
        changed = [module for module in modules if len(module.squares)]
        if not budget.in_bytes:
            return float(sum(len(module.squares) for module in changed))
        whole = adapter_of(self.pair, changed, (), self.name)
        return file_size(self._outline(whole), bare)

    def _outline(self, whole: Adapter) -> Outline:
        dialect = self._dialect(whole)
        return writer.outlined(dialect.adopt(whole), dialect, self._kind, self.request.extras, self.profile)


def _sized(module: Module, rank: int) -> Module:
    """As if it had so many units, for their bytes alone."""
    if not len(module.squares):
        return module
    k = min(rank, min(module.shape))
    up = np.broadcast_to(np.float32(0), (module.shape[0], k))
    down = np.broadcast_to(np.float32(0), (k, module.shape[1]))
    return replace(module, squares=np.zeros(k), up=up, down=down)


def _check_sizes(request: Request, rank: int | None, energy: float | None) -> None:
    sizes = {"rank": rank, "energy": energy, "total_rank": request.total_rank, "size": request.size}
    given = [name for name, value in sizes.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} both set the size: give one of them.")
    if rank is not None and rank < 1:
        raise UsageError(f"{say('rank', rank)} must be at least 1.")
    if energy is not None and not 0 < energy <= 1:
        raise UsageError(f"energy={energy} must be above 0 and at most 1.")
    if request.extras == "average":
        raise UsageError("extras='average' is for several sources: one of refuse, first, drop is for one.")


def _chooser(request: Request) -> Callable[[str], bool]:
    """Whether a name is taken, by `only` and `exclude`."""
    only = searcher(request.only, "only") if request.only is not None else None
    exclude = searcher(request.exclude, "exclude") if request.exclude is not None else None
    return lambda name: (only is None or bool(only(name))) and not (exclude is not None and exclude(name))
