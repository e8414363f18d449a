"""What a merge still does: its accuracy on the task of each source, tuned and untuned."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import loramerge as lm
from benchmarks.quality import forward
from benchmarks.quality.contenders import Contender
from benchmarks.quality.domains import DOMAINS, Samples
from benchmarks.quality.merges import Deltas, Sources
from benchmarks.quality.model import Transformer
from benchmarks.quality.plan import RHO, Cell, Size, Training
from benchmarks.quality.store import kept, key, measuring
from benchmarks.quality.train import HEAD, RANK, adapter, base, name_of
from loramerge.routing.torch import attach

IGNORED = -100  # a label that is not counted
ASKED = {"tune": 0, "test": 1}  # where a sample comes from, and its seed
AT_ONCE = 192  # samples times strengths: what the models write then stays in a core's cache


NEAR = 1e-5  # directions nearer than this are one merge: what is left is rounding


@dataclass(frozen=True, eq=False, slots=True)
class Direction:
    """What is known of all merges that differ only in their strength.

    Args:
        unit: (D,) all ΔW, of length 1.   curve: (10,) accuracy at each of RHO, once it was tuned.
        tests: ρ -> (T,) accuracy on the samples for the result.
    """

    unit: np.ndarray
    curve: list[float] = field(default_factory=list)
    tests: dict[float, list[float]] = field(default_factory=dict)

    def met(self, unit: np.ndarray) -> bool:
        """Whether this is it, too; a few places show most that are not."""
        few = slice(None, None, 997)
        small = np.linalg.norm(self.unit[few] - unit[few]) < NEAR
        return bool(small and np.linalg.norm(self.unit - unit) < NEAR)


@dataclass(frozen=True, eq=False, slots=True)
class Bench:
    """One cell, ready to be merged: its base, its sources, and the samples of all its tasks in one batch."""

    cell: Cell
    size: Size
    model: Transformer
    sources: Sources
    norm: float  # mean_t ‖ΔW_t‖
    directions: list[Direction] = field(default_factory=list)

    @classmethod
    def of(cls, cell: Cell, size: Size, work: Path) -> Bench:
        """With everything that it needs trained."""
        sources = Sources(cell, [adapter(one, size, work) for one in cell.trainings])
        norms = [np.sqrt(sum(one[target].norm() ** 2 for target in one)) for one in sources.ours]
        return cls(cell, size, base(cell.domain, size, work), sources, float(np.mean(norms)))

    def accuracy(self, deltas: Deltas, strengths: list[float], split: str) -> np.ndarray:
        """(S, T) on the task of each source, at each strength λ: how many samples are right as a whole.

        Of a string all letters must be right, as when the model writes on from its own ones. Counted one
        by one, most would be: a true first letter shows which function it is, and the base knows the rest.
        """
        which = self.cell.trainings if self.sources.heads else self.cell.apart()
        x, y = _samples(which, split, self.size)
        state = dict(self.model.state_dict())
        for path, delta in deltas.items():
            each = torch.tensor(strengths).float()[:, None, None] * torch.tensor(delta).float()
            state[f"{path}.weight"] = state[f"{path}.weight"] + each
        whole = forward.joined(state, len(strengths), len(self.model.blocks))
        if not self.sources.heads:
            right = self._right(whole, x, y, len(strengths))
            shares = right.view(len(right), len(which), -1).double().mean(dim=2).numpy()
            tasks = [one.task for one in which]
            return shares[:, [tasks.index(one.task) for one in self.cell.trainings]]
        each = zip(self.sources.heads, x.chunk(self.cell.count), y.chunk(self.cell.count), strict=True)
        right = [
            self._right({**whole, HEAD: head}, some, wanted, len(strengths)) for head, some, wanted in each
        ]
        return torch.stack(right, dim=1).double().mean(dim=2).numpy()

    def _right(self, state: forward.State, x: torch.Tensor, y: torch.Tensor, many: int) -> torch.Tensor:
        """(S, N) which samples are right at each strength."""
        found, start = [], int((y != IGNORED).any(dim=0).nonzero()[0])  # the first place that is counted
        for part, wanted in zip(*(whole.split(AT_ONCE // many) for whole in (x, y)), strict=True):
            with torch.no_grad():
                said = forward.logits(state, self.model.causal, part, len(self.model.blocks), start)
            each = wanted[:, start:]
            found.append(((said.argmax(dim=-1) == each) | (each == IGNORED)).all(dim=2))
        return torch.cat(found, dim=1)

    def results(self, one: Contender, rank: int) -> dict[str, dict[str, Any]]:
        """For every policy of strength, what `measured` gives; or why there is no merge."""
        if one.gate:
            refused = {"refused": "a bundle has one head, and here every task has its own"}
            return {"as shipped": refused if self.sources.heads else {"untuned": self.routed(one)}}
        deltas = self.sources.merged(one, rank, self.model)
        if isinstance(deltas, str):
            return {"as shipped": {"refused": deltas}}
        found = {"as shipped": self.measured(deltas, True)}
        if not one.peft:
            found["norm"] = self.measured(self.sources.as_loud(deltas), rank == RANK)
        return found

    def routed(self, one: Contender) -> list[float]:
        """(T,) on the task of each source, with all adapters on the model and a gate that weighs them."""
        x, y = _samples(self.cell.trainings, "test", self.size)
        said = self.gated(one, x).argmax(dim=-1)
        right = ((said == y) | (y == IGNORED)).all(dim=1)
        return right.view(self.cell.count, -1).double().mean(dim=1).tolist()

    def gated(self, one: Contender, x: torch.Tensor) -> torch.Tensor:
        """(N, L, classes) logits with a bundle on the model."""
        bundle = lm.route(self.sources.ours, one.method, **one.options)
        with torch.no_grad(), attach(self.model, bundle):
            return torch.cat([self.model(part) for part in x.split(AT_ONCE)])

    def measured(self, deltas: Deltas, tune: bool) -> dict[str, Any]:
        """Accuracies untuned, and at the strength that is best on the samples for tuning."""
        length = float(np.sqrt(sum(np.square(delta, dtype=float).sum() for delta in deltas.values())))
        shipped, known = length / self.norm, self.direction(deltas, length)
        one = self.norm / length if length > 0 else 0.0  # λ at ρ = 1
        if not tune:
            return {"untuned": self.tested(known, deltas, one, [shipped])[0], "norm": shipped}
        if not known.curve:
            grid = [rho * one for rho in RHO] if length > 0 else [0.0]
            known.curve.extend(self.accuracy(deltas, grid, "tune").mean(axis=1).tolist())
        best = RHO[int(np.argmax(known.curve))]
        untuned, tuned = self.tested(known, deltas, one, [shipped, best])
        return {
            "untuned": untuned,
            "tuned": tuned,
            "strength": best * one,
            "curve": [round(share, 4) for share in known.curve],
            "norm": shipped,
        }

    def direction(self, deltas: Deltas, length: float) -> Direction:
        """What is known of merges that differ from this one in strength alone."""
        whole = np.concatenate([np.ravel(deltas[path]) for path in sorted(deltas)]) / max(length, 1e-30)
        unit = whole.astype(np.float32)
        for each in self.directions:
            if each.met(unit):
                return each
        self.directions.append(Direction(unit))
        return self.directions[-1]

    def tested(self, known: Direction, deltas: Deltas, one: float, wanted: list[float]) -> list[list[float]]:
        """(T,) accuracies on the samples for the result, at each strength ρ."""
        names = [round(rho, 6) for rho in wanted]
        if missing := [rho for rho in dict.fromkeys(names) if rho not in known.tests]:
            exact = dict(zip(names, wanted, strict=True))
            found = self.accuracy(deltas, [exact[rho] * one for rho in missing], "test")
            known.tests.update(zip(missing, found.tolist(), strict=True))
        return [known.tests[rho] for rho in names]

    def alone(self) -> dict[str, Any]:
        """What each source does on its own task, and what the base does on it."""
        own = []
        for n, source in enumerate(self.sources.ours):
            update = {target.path: source[target].dense() for target in source}
            own.append(self.accuracy(update, [1.0], "test")[0, n].item())
        return {"own": own, "base": self.accuracy({}, [1.0], "test")[0].tolist()}


@cache
def _samples(trainings: tuple[Training, ...], split: str, size: Size) -> Samples:
    """Equally many of every task, one after another."""
    count = size.held[ASKED[split]]
    drawn = [
        DOMAINS[one.domain].draw(one.task, split, count, np.random.default_rng([7, ASKED[split], one.task]))
        for one in trainings
    ]
    x, y = zip(*drawn, strict=True)
    return torch.cat(x), torch.cat(y)


def where(cell: Cell, size: Size, work: Path, **facts: Any) -> Path:
    """The file of a result: its name holds all that it depends on."""
    names = [name_of(one, size) for one in cell.trainings]
    name = key(adapters=names, held=size.held, code=measuring(), rho=RHO, **facts)
    return work / "results" / name[:2] / f"{name}.json"


def cell_rows(
    cell: Cell, size: Size, work: Path, wanted: list[tuple[Contender, int]]
) -> list[dict[str, Any]]:
    """One row for each contender, rank and policy; what is on file is not measured again."""
    bench: list[Bench] = []

    def ready() -> Bench:
        if not bench:
            bench.append(Bench.of(cell, size, work))
        return bench[0]

    about = {"domain": cell.domain, "regime": cell.regime, "seed": cell.seed, "count": cell.count}
    alone = kept(where(cell, size, work, alone=True), lambda: ready().alone())
    rows = []
    for one, rank in wanted:
        facts = {"contender": one.name, "options": dict(one.options), "rank": rank}
        path = where(cell, size, work, merging=one.code(), **facts)
        found = kept(path, lambda o=one, r=rank: ready().results(o, r))
        rows += [about | facts | {"policy": policy} | alone | each for policy, each in found.items()]
    return rows


__all__ = ["Bench", "adapter", "cell_rows", "where"]
