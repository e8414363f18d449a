"""What `extract` returns: the adapter, and how much of the difference of two models is in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.charts.facts import as_frame
from loramerge.checkpoints.checkpoint import Key
from loramerge.checkpoints.difference import Beside, Module, name_of
from loramerge.errors import printable
from loramerge.formats.peft.beside import told
from loramerge.merge.tables import as_html, counted, headed


@dataclass(frozen=True, eq=False)
class Extraction:
    """What `extract` returns: the adapter, and how much of the difference is in it.

    Args:
        adapter: read back, where it was written.   out: where it was written.
        modules: all that both models have.
        beside: tensors that differ, but of which no update is made.   kept: they were kept whole.
        names: of the tuned model and its base.
        alone: tensors that were not compared, because only one of the models has them.
        doubts: what cannot be told of the names of the modules.
    """

    adapter: Adapter
    out: Path | None
    modules: tuple[Module, ...]
    beside: tuple[Beside, ...]
    kept: bool
    names: tuple[str, str]
    alone: Sequence[Key] = ()
    doubts: Sequence[str] = ()

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
        yield from self.doubts
        if self.alone:
            yield (
                "not compared, because only one of the models has such a name: "
                f"{counted(len(self.alone), 'tensor')} ({told([name_of(key) for key in self.alone])})"
            )

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
