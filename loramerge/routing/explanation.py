"""Which units fire for some tokens and why, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.charts.draw import drawn, inert
from loramerge.charts.table import Column, Table, numbers
from loramerge.charts.units import CHOSEN, EXPERT, SCORE, TOKEN, UNIT, WEIGHT, units
from loramerge.errors import printable
from loramerge.routing.bank import Layout
from loramerge.routing.gates.choice import FAR

FEW = 8  # tokens that are told one by one
LOST = 3  # experts of those that a token did not get, which are told


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a gate did with n tokens in one module.

    Args:
        module, gate: names.   experts: (E,) names.
        units: (n, R) the weight of every unit.
        lengths: (n, E) ‖G_e ΔW_e x‖, how far each expert moves the output.
        scores: (n, R) what the gate went by before it chose: of a gate of experts that of its expert, -inf
            where an expert did not come to the choice. None of a gate that weighs outputs.
        options: of the gate, such as top_k and threshold.
    """

    module: str
    gate: str
    experts: tuple[str, ...]
    layout: Layout
    units: Array
    lengths: Array
    scores: Array | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scores is not None:
            scores = np.where(self.scores <= FAR, -np.inf, self.scores)
            object.__setattr__(self, "scores", scores)

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
    def bar(self) -> Array | None:
        """(n,) the lowest score that was still chosen for each token; inf where none was."""
        if self.scores is None:
            return None
        return np.asarray(np.where(self.units != 0, self.scores, np.inf).min(axis=1, initial=np.inf))

    @property
    def best(self) -> Array | None:
        """(n, E) the highest score of each expert's units; -inf where it has none."""
        if self.scores is None:
            return None
        parts = [self.scores[:, self.layout.of(e)] for e in range(self.layout.experts)]
        return np.stack([part.max(axis=1, initial=-np.inf) for part in parts], axis=1)

    @property
    def first(self) -> list[str]:
        """(n,) the expert that moves the output of each token farthest."""
        return [self.experts[e] for e in self.lengths.argmax(axis=1)]

    def __str__(self) -> str:
        names = [printable(name, 40) for name in self.experts]
        lines = [self._head(), *self._table(names)]
        lines += [self._token(n, names) for n in range(min(len(self.units), FEW))]
        if len(self.units) > FEW:
            lines.append(f"and {len(self.units) - FEW} more tokens")
        return "\n".join(lines)

    def _head(self) -> str:
        return f"{printable(self.module)}, gate {self._gate()}, {len(self.units)} tokens"

    def _gate(self) -> str:
        said = {name: value for name, value in self.options.items() if isinstance(value, int | float)}
        options = ", ".join(f"{name} {value:g}" for name, value in said.items() if value is not False)
        return f"{self.gate} ({options})" if options else self.gate

    def _table(self, names: list[str]) -> list[str]:
        shares = self.lengths / np.maximum(self.lengths.sum(axis=1, keepdims=True), 1e-300)
        width = max(len("expert"), *map(len, names))
        lines = [f"{'expert':<{width}}   score  weight  units firing  share of the change  first for"]
        for e, name in enumerate(names):
            fire = f"{self.firing[:, e].mean():.1f} of {self.layout.ranks[e]}"
            wins = (self.lengths.argmax(axis=1) == e).mean()
            lines.append(
                f"{name:<{width}}  {self._mean_score(e):>6}  {self.weights[:, e].mean():6.3f}  {fire:>12}"
                f"  {shares[:, e].mean():19.3f}  {100 * wins:7.1f} %"
            )
        return lines

    def _mean_score(self, expert: int) -> str:
        best = None if self.best is None else self.best[:, expert]
        there = best[np.isfinite(best)] if best is not None else np.zeros(0)
        return f"{there.mean():.3g}" if there.size else "–"

    def _token(self, n: int, names: list[str]) -> str:
        """What one token got, with its scores, and what it did not get for which score."""
        order = [e for e in np.argsort(-self.lengths[n], kind="stable") if self.firing[n, e]]
        told = ", ".join(f"{names[e]} {self.weights[n, e]:.3f}{self._score(n, e)}" for e in order[:3])
        line = f"token {n}: {told or 'nothing'}"
        if self.best is None or (best := self.best[n]) is None:
            return line
        lost = [e for e in np.argsort(-best, kind="stable") if not self.firing[n, e] and np.isfinite(best[e])]
        if not lost:
            return line
        rest = ", ".join(f"{names[e]}{self._score(n, e)}" for e in lost[:LOST])
        return f"{line}; not {rest}{', …' if len(lost) > LOST else ''}"

    def _score(self, n: int, expert: int) -> str:
        return "" if self.best is None else f" (score {self.best[n, expert]:.3g})"

    def to_frame(self) -> Any:
        """A `pandas.DataFrame` with a row for each unit and token; pandas must be installed."""
        return self.table.to_frame()

    def _repr_html_(self) -> str:
        columns = (Column("expert", "text"), *numbers("score", "weight", "units firing", "first for"))
        first, best = self.lengths.argmax(axis=1), self.best
        rows = [
            (
                name,
                None if best is None or not np.isfinite(best[:, e]).all() else float(best[:, e].mean()),
                float(self.weights[:, e].mean()),
                float(self.firing[:, e].mean()),
                int((first == e).sum()),
            )
            for e, name in enumerate(self.experts)
        ]
        return Table(columns, rows)._repr_html_()

    @property
    def table(self) -> Table:
        """A row for each unit and token: its score before the choice, whether it was chosen, its weight."""
        chosen = Column(CHOSEN, "text")
        columns = (Column(EXPERT, "text"), *numbers(UNIT, TOKEN, SCORE), chosen, *numbers(WEIGHT))
        owner, starts = self.layout.owner, self.layout.starts
        rows = [
            (
                self.experts[owner[r]],
                int(r - starts[owner[r]]) + 1,
                n,
                self._number(n, r),
                "yes" if self.units[n, r] else "no",
                float(self.units[n, r]),
            )
            for r in range(self.layout.units)
            for n in range(len(self.units))
        ]
        return Table(columns, rows)

    def _number(self, n: int, unit: int) -> float | None:
        if self.scores is None or not np.isfinite(self.scores[n, unit]):
            return None
        return float(self.scores[n, unit])

    def plot(self) -> Any:
        """The weight of every unit for every token, in a band for each expert: an Altair chart.

        The darker the dot in a field, the higher its score before the choice; fields without colour lost.

        Raises:
            UsageError: Altair is not installed.
        """
        return drawn(units, self.table).properties(title=inert(f"{printable(self.module)}: {self._gate()}"))
