"""What each module of an adapter is: shape, rank, scale and the singular values of its ΔW."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.target import Target
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array
from loramerge.arrays.gram import spectrum
from loramerge.arrays.workers import workers
from loramerge.request.progress import Stage, Tell
from loramerge.sources.batches import batches
from loramerge.sources.units import Units, align


@dataclass(frozen=True, eq=False, slots=True)
class ModuleFacts:
    """One module: (out, in), stored rank, scale and the singular values of ΔW, largest first.

    Where only a header on the Hub was read there are no `sigma`, and so no norm and no effective rank.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    scale: float
    dtype: str
    sigma: Array | None  # (rank,)

    @property
    def norm(self) -> float | None:
        """‖ΔW‖_F."""
        return None if self.sigma is None else float(np.sqrt((self.sigma**2).sum()))

    @property
    def effective_rank(self) -> float | None:
        """exp of the entropy of σ²/Σσ²: how many units share the energy; 0 for a zero update.

        Source: Roy & Vetterli 2007, on energies.
        """
        if self.sigma is None:
            return None
        energy = self.sigma**2
        if not energy.any():
            return 0.0
        share = energy[energy > 0] / energy.sum()
        return float(np.exp(-(share * np.log(share)).sum()))

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "shape": list(self.shape),
            "rank": self.rank,
            "scale": self.scale,
            "dtype": self.dtype,
            "norm": self.norm,
            "effective_rank": self.effective_rank,
            "sigma": None if self.sigma is None else self.sigma.tolist(),
        }


def modules(adapter: Adapter, tell: Tell | None = None) -> tuple[ModuleFacts, ...]:
    """The facts of every module, sorted by name. Factors are read once, batch by batch."""
    # Also where the cache has the file: the same command shows the same columns everywhere.
    if adapter.provenance.peeked:
        return tuple(_facts(adapter, target, None) for target in sorted(adapter))

    def look(units: Units) -> list[tuple[str, ModuleFacts]]:
        grams = units.grams()
        sigma = spectrum(grams.up, grams.down).sigma
        stage.step(len(units.targets))
        return [(str(t), _facts(adapter, t, values)) for t, values in zip(units.targets, sigma, strict=True)]

    with Stage(tell, "measuring", len(adapter)) as stage, workers(1, stage.tick) as run:
        found = dict(chain.from_iterable(run(look, batches([adapter], align([adapter])))))
    return tuple(found[str(target)] for target in sorted(adapter))


def _facts(adapter: Adapter, target: Target, sigma: Array | None) -> ModuleFacts:
    slot = adapter.slots[target]
    kind = dtypes.widest([slot.up.dtype, slot.down.dtype])
    return ModuleFacts(str(target), slot.shape, slot.rank, slot.scale, dtypes.word(kind), sigma)
