"""What a merge kept and lost, per source and per module, measured from the Grams."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.charts.facts import as_frame
from loramerge.errors import printable, say
from loramerge.merge.tables import as_html, counted, fitted, wrapped

PAIRS = 64  # sources; of more, nobody reads a table of all pairs, which grows with their square
ROWS = 20  # of the table
CANCELLED = 0.1  # of the energy that sources would have side by side: two of a cosine of -0.9 leave less
FAINT = 1e-6  # of that energy: a merge that has less is rounding, or what hardly anybody sees


@dataclass(frozen=True, eq=False, slots=True)
class Module:
    """One merged module. Norms are Frobenius norms of ΔW; squares where it says so.

    Args:
        name: the module.   ranks: rank of each source there.
        wanted: ‖Σ w_t ΔW_t‖².   merged: ‖merge‖² before rounding.   lost: ‖Σ w_t ΔW_t − merge‖².
        rounding: ‖merge − what was written‖²; None before it is stored.
        overlaps: (T,) ⟨merge, ΔW_t⟩.   inners: (T, T) ⟨ΔW_t, ΔW_u⟩, or (T,) ‖ΔW_t‖² of more
            than `PAIRS` sources.
        whole, cut: ‖·‖² of what the method makes, and of what its rank cuts off; None where nothing is cut.
        scale: the factor that a scale policy put on the merge.
        facts: what else the method says of the module, as numbers by name, so that no method needs a report
            of its own; before any scale.
        spread: Σ α_t ‖ΔW_t − Σ α_u ΔW_u‖² of a mixture with shares α: how far its sources are apart.
    """

    name: str
    ranks: tuple[int, ...]
    wanted: float
    merged: float
    lost: float
    rounding: float | None
    overlaps: Array
    inners: Array
    whole: float | None = None
    cut: float | None = None
    scale: float = 1.0
    facts: Mapping[str, float] = field(default_factory=dict)
    spread: float | None = None

    @property
    def squares(self) -> Array:
        """(T,) ‖ΔW_t‖²."""
        return self.inners.diagonal() if self.inners.ndim == 2 else self.inners

    @property
    def cosines(self) -> list[float | None]:
        """(T,) cosine of the merge with each source; None where one of them is zero."""
        return [_cosine(o, self.merged, n) for o, n in zip(self.overlaps, self.squares, strict=True)]

    @property
    def energy_lost(self) -> float | None:
        """Share of the weighted sum's ‖·‖² that the merge misses; None if the sum is zero."""
        return _ratio(self.lost, self.wanted)

    @property
    def rounding_error(self) -> float | None:
        """‖merge − written‖ / ‖merge‖; None if the merge is zero."""
        return None if self.rounding is None else _root(_ratio(self.rounding, self.merged))


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """What a whole merge kept and lost.

    Args:
        sources: names.   weights: as the method used them.   modules: one entry each.
        notes: sentences the user should read.
        similarities: (T,) of the sources to what was wanted, if they decided the weights.
        left_out: name -> similarity of sources that were not chosen; their weight is 0.
        default: the method in words, if nobody named one.
        silent: places of sources that have a weight of 0 in every module.
        remedy: how the sentence about a merge that is too strong ends; empty for one that is not.
    """

    sources: tuple[str, ...]
    weights: tuple[float, ...]
    modules: tuple[Module, ...]
    notes: tuple[str, ...] = ()
    similarities: tuple[float, ...] = ()
    left_out: Mapping[str, float] = field(default_factory=dict)
    default: str = ""
    silent: frozenset[int] = frozenset()
    remedy: str = ""

    @property
    def energy_lost(self) -> float | None:
        """Share of ‖Σ w_t ΔW_t‖² that the merge misses, over all modules."""
        return _ratio(self._sum("lost"), self._sum("wanted"))

    @property
    def cut(self) -> float | None:
        """Share of ‖what the method makes‖² that its rank cuts off; None if nothing is ever cut."""
        if all(module.cut is None for module in self.modules):
            return None
        cut = sum(module.cut or 0.0 for module in self.modules)
        return _ratio(cut, sum(m.merged if m.whole is None else m.whole for m in self.modules))

    @property
    def spread(self) -> float | None:
        """Share of Σ α_t ‖ΔW_t‖² in which the sources of a mixture differ: 0 if they are one; else None."""
        if any(module.spread is None for module in self.modules):
            return None
        return _ratio(self._sum("spread"), self._sum("spread") + self._sum("wanted"))

    @property
    def scales(self) -> tuple[float, float]:
        """The smallest and the largest factor that a scale policy put on a module."""
        found = [module.scale for module in self.modules] or [1.0]
        return min(found), max(found)

    @property
    def facts(self) -> dict[str, tuple[float, float]]:
        """Name of a fact -> its smallest and its largest value over the modules that have it."""
        names = dict.fromkeys(name for module in self.modules for name in module.facts)
        values = {name: [m.facts[name] for m in self.modules if name in m.facts] for name in names}
        return {name: (min(each), max(each)) for name, each in values.items()}

    @property
    def rounding_error(self) -> float | None:
        """‖merge − written‖ / ‖merge‖ over all modules."""
        if any(module.rounding is None for module in self.modules):
            return None
        return _root(_ratio(self._sum("rounding"), self._sum("merged")))

    @property
    def cosines(self) -> list[float | None]:
        """(T,) cosine of the merge with each source; None where one of them is zero."""
        norms, merged = self._squares, self._sum("merged")
        return [_cosine(o, merged, n) for o, n in zip(self._overlaps, norms, strict=True)]

    @property
    def norm_ratios(self) -> list[float | None]:
        """(T,) ‖merge‖ / ‖ΔW_t‖."""
        merged = self._sum("merged")
        return [_root(_ratio(merged, float(norm))) for norm in self._squares]

    @property
    def strength(self) -> float | None:
        """‖merge‖ over `mean`: 1 is as strong as the sources are."""
        return None if self.mean is None else self._sum("merged") ** 0.5 / self.mean

    @property
    def mean(self) -> float | None:
        """The mean ‖ΔW_t‖ of the sources that have a weight and are not zero; None if there are none."""
        norms = np.sqrt(np.maximum(self._squares, 0.0))
        norms[list(self.silent)] = 0.0
        return float(norms[norms > 0].mean()) if (norms > 0).any() else None

    @property
    def too_strong(self) -> str | None:
        """What is told of a merge that is much stronger than its sources; None if it is not."""
        if not self.remedy:
            return None
        sources = "its source is" if len(self.sources) == 1 else "its sources are on average"
        return f"the merge is {self.strength:.3g} times as strong as {sources}, {self.remedy}"

    @property
    def cancelling(self) -> str | None:
        """What is told where sources undo each other, and the method gave what is left a strength of theirs.

        Of a plain sum it is not told: what it has left is as faint as it ought to be.
        """
        found = [module for module in self.modules if self._undone(module)]
        if not found:
            return None
        where = "every module" if len(found) == len(self.modules) else counted(len(found), "module")
        told = f"the sources cancel each other in {where}, so that"
        if not any(module.merged > FAINT * self._apart(module) for module in found):
            return f"{told} nothing is left: leave one of them out"
        if all(module.merged <= 2 * module.wanted * module.scale**2 for module in found):
            return f"{told} the scale raised what is left: leave one of them out, or the scale"
        return (
            f"{told} full strength was given to what is left: leave one of them out, or see by "
            f"{say('method', 'linear')} what their sum is"
        )

    def _apart(self, module: Module) -> float:
        """‖Σ w_t ΔW_t‖² if the sources had nothing in common."""
        return float(np.square(self.weights) @ module.squares)

    def _undone(self, module: Module) -> bool:
        apart = self._apart(module)
        raised = module.merged > 2 * module.wanted or not module.merged
        return module.wanted < CANCELLED * apart and raised

    @property
    def pairwise(self) -> list[list[float | None]]:
        """(T, T) cosines of the sources with each other; empty for more than `PAIRS` sources."""
        if len(self.sources) > PAIRS:
            return []
        table, norms = self._inners, self._squares
        size = range(len(self.sources))
        return [[_cosine(table[t, u], norms[t], norms[u]) for u in size] for t in size]

    def worst(self, count: int = 5) -> list[Module]:
        """The modules that lost the largest share of their energy."""
        return sorted(self.modules, key=lambda m: (-(m.energy_lost or 0.0), m.name))[:count]

    def _sum(self, name: str) -> float:
        return float(sum(getattr(module, name) for module in self.modules))

    @property
    def _overlaps(self) -> Array:
        return np.sum([module.overlaps for module in self.modules], axis=0)

    @property
    def _squares(self) -> Array:
        return np.asarray(np.sum([module.squares for module in self.modules], axis=0))

    @property
    def _inners(self) -> Array:
        return np.asarray(np.sum([module.inners for module in self.modules], axis=0))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "energy_lost": self.energy_lost,
            "cut_by_rank": self.cut,
            "rounding_error": self.rounding_error,
            "strength": self.strength,
            "sources": [
                {"name": name, "weight": weight, "cosine": cosine, "norm_ratio": ratio, **similar}
                for (name, weight, cosine, ratio), similar in zip(self._rows(), self._similar(), strict=True)
            ],
            **({"spread": self.spread, "left_out": self._left()} if self.similarities else {}),
            "pairwise_cosines": self.pairwise,
            "modules": [_module_dict(module) for module in self.modules],
            "notes": [*self.notes, *([] if self.cancelling is None else [self.cancelling])],
        }

    def _rows(self) -> Iterable[tuple[str, float, float | None, float | None]]:
        return zip(self.sources, self.weights, self.cosines, self.norm_ratios, strict=True)

    def _similar(self) -> list[dict[str, float]]:
        """(T,) what decided the weights, if anything did."""
        found = [{"similarity": similarity} for similarity in self.similarities]
        return found or [{} for _ in self.sources]

    def _left(self) -> list[dict[str, Any]]:
        return [{"name": name, "weight": 0.0, "similarity": s} for name, s in self.left_out.items()]

    def table(self) -> list[list[str]]:
        """Rows of the short table, the header first."""
        names = [printable(name, 40) for name in self.sources]
        numbers = [f"cos({i})" for i in range(1, len(names) + 1)]
        head = [
            "source",
            *(["similarity"] if self.similarities else []),
            "weight",
            "cos(merge)",
            "‖merge‖/‖·‖",
            *(numbers if len(names) <= 8 else []),
        ]
        pairwise = self.pairwise or [[] for _ in names]
        rows = [
            [
                f"{i} {name}",
                *map(_show, similar.values()),
                f"{weight:g}",
                _show(cosine),
                _show(ratio),
                *map(_show, pairs),
            ]
            for i, (name, similar, (_, weight, cosine, ratio), pairs) in enumerate(
                zip(names, self._similar(), self._rows(), pairwise, strict=True), 1
            )
        ]
        rows = [row[: len(head)] for row in rows]
        if (hidden := len(rows) - ROWS) > 1:  # its head and its tail
            gap = [f"… {hidden} more", *[""] * (len(head) - 1)]
            rows = [*rows[: ROWS // 2], gap, *rows[-(ROWS // 2) :]]
        return [head, *rows]

    def summary(self) -> list[str]:
        """The lines below the table."""
        rounding, (least, most) = f"rounding error {_tiny(self.rounding_error)}", self.scales
        if self.cut is None:
            lines = [f"energy lost {_percent(self.energy_lost)}, {rounding}"]
        else:  # the method wants something else than the weighted sum, and the rank cuts that
            sum_ = f"away from the weighted sum {_percent(self.energy_lost)}"
            lines = [f"cut by the rank {_percent(self.cut)}, {sum_}, {rounding}"]
        if self.default:
            strength = (
                "" if self.strength is None else f", {self.strength:.3g} times as strong as its sources"
            )
            lines.insert(0, f"method {self.default}{strength}")
        lines += [told for told in (self.too_strong, self.cancelling) if told is not None]
        if self.spread is not None and len(self.sources) > 1:
            lines.append(f"the sources differ in {_percent(self.spread)} of their energy")
        if (least, most) != (1.0, 1.0):
            lines.append(f"scaled by {_range(least, most)}")
        if self.facts:
            lines.append(", ".join(f"{name} {_range(*ends)}" for name, ends in self.facts.items()))
        if self.cut is None and (self.energy_lost or 0.0) > 1e-9:
            worst = [f"{printable(m.name)} {_percent(m.energy_lost)}" for m in self.worst(3)]
            lines.append(f"most lost in: {', '.join(worst)}")
        return lines

    def to_frame(self) -> Any:
        """A `pandas.DataFrame` with a row for each module; pandas must be installed."""
        return as_frame([_module_dict(module) for module in self.modules])

    def __repr__(self) -> str:
        many = f"{counted(len(self.sources), 'source')}, {counted(len(self.modules), 'module')}"
        return f"<Report of {many}: energy lost {_percent(self.energy_lost)}>"

    def __str__(self) -> str:
        return "\n".join([*fitted(self.table()), *wrapped(self.summary())])

    def _repr_html_(self) -> str:
        return as_html(self.table(), [*self.summary(), *self.notes])


def _module_dict(module: Module) -> dict[str, Any]:
    return {
        "name": module.name,
        "ranks": list(module.ranks),
        "norm": module.merged**0.5,
        "energy_lost": module.energy_lost,
        "rounding_error": module.rounding_error,
        **({"cosines": module.cosines} if len(module.ranks) <= PAIRS else {}),
        **({} if module.cut is None else {"cut_by_rank": _ratio(module.cut, module.whole or 0.0)}),
        **({} if module.scale == 1.0 else {"scale": module.scale}),
        **({"facts": dict(module.facts)} if module.facts else {}),
        **({} if module.spread is None else {"spread": module.spread}),
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _root(value: float | None) -> float | None:
    return None if value is None else value**0.5


def _cosine(product: float, first: float, second: float) -> float | None:
    return float(product / (np.sqrt(first) * np.sqrt(second))) if first > 0 and second > 0 else None


def _show(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _range(low: float, high: float) -> str:
    return f"{low:.3g}" + (f" to {high:.3g} by module" if f"{high:.3g}" != f"{low:.3g}" else "")


def _percent(value: float | None) -> str:
    return "–" if value is None else "< 1e-9 %" if 0 < value < 1e-11 else f"{100 * value:.3g} %"


def _tiny(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"
