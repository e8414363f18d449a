"""What a merge still does: its accuracy on the task of each source, tuned and untuned."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quality import contenders
from benchmarks.quality.contenders import Contender, Deltas
from benchmarks.quality.domains import DOMAINS, Samples
from benchmarks.quality.model import Transformer, right
from benchmarks.quality.plan import RHO, Cell, Size, Training
from benchmarks.quality.store import kept, key, measuring, merging
from benchmarks.quality.train import adapter, base, name_of

ASKED = {"tune": 0, "test": 1}  # where a sample comes from, and its seed


@dataclass(frozen=True, eq=False, slots=True)
class Bench:
    """One cell, ready to be merged: its base, its sources, and the samples of all its tasks in one batch."""

    cell: Cell
    size: Size
    work: Path
    model: Transformer
    loaded: list[Any]
    norm: float  # mean_t ‖ΔW_t‖

    @classmethod
    def of(cls, cell: Cell, size: Size, work: Path) -> Bench:
        """With everything that it needs trained."""
        model = copy.deepcopy(base(cell.domain, size, work))
        loaded = contenders.sources(cell, size, work)
        norms = [np.sqrt(sum(one[target].norm() ** 2 for target in one)) for one in loaded]
        return cls(cell, size, work, model, loaded, float(np.mean(norms)))

    def accuracy(self, deltas: Deltas, strength: float, split: str) -> list[float]:
        """On the task of each source, at λ = strength."""
        x, y = _samples(self.cell.trainings, split, self.size)
        plain = base(self.cell.domain, self.size, self.work).state_dict()
        own = dict(self.model.named_parameters())
        for path, delta in deltas.items():
            own[f"{path}.weight"].data = plain[f"{path}.weight"] + strength * torch.tensor(delta).float()
        shares = right(self.model, x, y).view(self.cell.count, -1).mean(dim=1).tolist()
        for path in deltas:
            own[f"{path}.weight"].data = plain[f"{path}.weight"]
        return shares

    def result(self, one: Contender, rank: int, policy: str) -> dict[str, Any]:
        """Accuracies untuned, and at the strength that was best on the samples for tuning."""
        if one.peft:
            deltas: Deltas | str = contenders.peft_merged(one, self.cell, rank, self.size, self.work)
        else:
            deltas = contenders.merged(one, self.cell, rank, policy, self.loaded)
        if isinstance(deltas, str):
            return {"refused": deltas}
        length = float(np.sqrt(sum(np.square(delta, dtype=float).sum() for delta in deltas.values())))
        tuned, best = 0.0, -1.0
        for rho in RHO if length > 0 else ():
            found = float(np.mean(self.accuracy(deltas, rho * self.norm / length, "tune")))
            if found > best:
                tuned, best = rho * self.norm / length, found
        return {
            "untuned": self.accuracy(deltas, 1.0, "test"),
            "tuned": self.accuracy(deltas, tuned, "test"),
            "strength": tuned,
            "norm": length / self.norm,
        }

    def alone(self) -> dict[str, Any]:
        """What each source does on its own task, and what the base does on it."""
        own = []
        for n, source in enumerate(self.loaded):
            update = {target.path: source[target].dense() for target in source}
            own.append(self.accuracy(update, 1.0, "test")[n])
        return {"own": own, "base": self.accuracy({}, 1.0, "test")}


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
    cell: Cell, size: Size, work: Path, wanted: list[tuple[Contender, int, str]]
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
    for one, rank, policy in wanted:
        facts = {"contender": one.name, "options": dict(one.options), "rank": rank, "policy": policy}
        path = where(cell, size, work, merging=merging(), **facts)
        found = kept(path, lambda o=one, r=rank, p=policy: ready().result(o, r, p))
        rows.append(about | facts | alone | found)
    return rows


__all__ = ["Bench", "adapter", "cell_rows", "where"]
