"""Which units fire for some tokens, as a table and as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.charts.draw import drawn
from loramerge.charts.table import Column, Table, numbers
from loramerge.charts.units import EXPERT, TOKEN, UNIT, WEIGHT, units
from loramerge.errors import printable
from loramerge.routing.bank import Layout

FEW = 8  # tokens that are told one by one


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a gate did with n tokens in one module.

    Args:
        module, gate: names.   experts: (E,) names.
        units: (n, R) the weight of every unit.
        lengths: (n, E) ‖G_e ΔW_e x‖, how far each expert moves the output.
    """

    module: str
    gate: str
    experts: tuple[str, ...]
    layout: Layout
    units: Array
    lengths: Array

    @property
    def weights(self) -> Array:
        """(n, E) the mean weight of the units of each expert."""
        count = np.maximum(np.array(self.layout.ranks), 1)
        return np.asarray(self.units @ self.layout.members / count)

    @property
    def firing(self) -> Array:
        """(n, E) how many units of each expert have a weight."""
        return np.asarray((self.units != 0) @ self.layout.members).astype(int)

    @property
    def first(self) -> list[str]:
        """(n,) the expert that moves the output of each token farthest."""
        return [self.experts[e] for e in self.lengths.argmax(axis=1)]

    def __str__(self) -> str:
        shares = self.lengths / np.maximum(self.lengths.sum(axis=1, keepdims=True), 1e-300)
        names = [printable(name, 40) for name in self.experts]
        width = max(len("expert"), *map(len, names))
        lines = [f"{printable(self.module)}, gate {self.gate}, {len(self.units)} tokens"]
        lines.append(f"{'expert':<{width}}  weight  units firing  share of the change  first for")
        for e, name in enumerate(names):
            fire = f"{self.firing[:, e].mean():.1f} of {self.layout.ranks[e]}"
            wins = (self.lengths.argmax(axis=1) == e).mean()
            lines.append(
                f"{name:<{width}}  {self.weights[:, e].mean():6.3f}  {fire:>12}  {shares[:, e].mean():19.3f}"
                f"  {100 * wins:7.1f} %"
            )
        for n in range(min(len(self.units), FEW)):
            order = np.argsort(-self.lengths[n], kind="stable")[:3]
            told = ", ".join(f"{names[e]} {self.weights[n, e]:.3f}" for e in order if self.weights[n, e])
            lines.append(f"token {n}: {told or 'nothing'}")
        if len(self.units) > FEW:
            lines.append(f"and {len(self.units) - FEW} more tokens")
        return "\n".join(lines)

    def to_frame(self) -> Any:
        """A `pandas.DataFrame` with a row for each unit and token; pandas must be installed."""
        return self.table.to_frame()

    def _repr_html_(self) -> str:
        columns = (Column("expert", "text"), *numbers("weight", "units firing", "first for"))
        first = self.lengths.argmax(axis=1)
        rows = [
            (
                name,
                float(self.weights[:, e].mean()),
                float(self.firing[:, e].mean()),
                int((first == e).sum()),
            )
            for e, name in enumerate(self.experts)
        ]
        return Table(columns, rows)._repr_html_()

    @property
    def table(self) -> Table:
        """A row for each unit and token."""
        columns = (Column(EXPERT, "text"), *numbers(UNIT, TOKEN, WEIGHT))
        owner, starts = self.layout.owner, self.layout.starts
        rows = [
            (self.experts[owner[r]], int(r - starts[owner[r]]) + 1, n, float(self.units[n, r]))
            for r in range(self.layout.units)
            for n in range(len(self.units))
        ]
        return Table(columns, rows)

    def plot(self) -> Any:
        """The weight of every unit for every token: an Altair chart with a band for each expert.

        Raises:
            UsageError: Altair is not installed.
        """
        return drawn(units, self.table).properties(title=f"{printable(self.module)}: {self.gate}")
