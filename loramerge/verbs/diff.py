"""How far two adapters are apart, module by module, from their factors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.adapters.adapter import Adapter, Tensor
from loramerge.adapters.arguments import checked
from loramerge.adapters.lowrank import LowRank
from loramerge.adapters.original import unchanged
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.arrays.dtypes import wide
from loramerge.arrays.workers import workers
from loramerge.charts.facts import as_frame
from loramerge.errors import SourceError, VerificationError, printable, say
from loramerge.formats.dialects.grain import comparable
from loramerge.formats.dialects.together import side_by_side
from loramerge.formats.files.views import pieces
from loramerge.merge.tables import as_html, counted, fitted, wrapped
from loramerge.request.entry import part
from loramerge.request.progress import Stage
from loramerge.request.recipe import Ingredient
from loramerge.request.request import Request
from loramerge.request.signature import spelled
from loramerge.sources.identity import identified
from loramerge.sources.open import open_all
from loramerge.sources.units import align

ROWS = 512  # of ΔW at a time


@dataclass(frozen=True, slots=True)
class ModuleDifference:
    """One module of A and B, as squares and products of Frobenius norms.

    Args:
        name: the module, or the key of a tensor beside the pairs.
        first, second: ‖A‖² and ‖B‖².   apart: ‖A − B‖².   inner: ⟨A, B⟩.
        missing: ``A`` or ``B`` where only the other one has it.
        overlap: Σ |Aᵢⱼ Bᵢⱼ|, if it was asked for.
    """

    name: str
    first: float
    second: float
    apart: float
    inner: float
    missing: str | None = None
    overlap: float | None = None

    @property
    def error(self) -> float:
        """‖A − B‖ / ‖A‖; 1 for a missing module, infinite where only A is zero."""
        return 1.0 if self.missing else _relative(self.apart, self.first)

    @property
    def cosine(self) -> float | None:
        """⟨A, B⟩ / ‖A‖‖B‖; None where one of them is zero or missing."""
        return _cosine(self.inner, self.first, self.second)

    @property
    def geodesic(self) -> float | None:
        """⟨A, B⟩² / ‖A‖²‖B‖², the C_geo of AlignGuard, whose C_RM is `overlap` without its weights."""
        return None if self.cosine is None else self.cosine**2

    @property
    def norm_ratio(self) -> float | None:
        """‖B‖ / ‖A‖; None where A is zero or missing."""
        return math.sqrt(self.second / self.first) if self.first > 0 else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "error": _finite(self.error),
            "cosine": self.cosine,
            "norm_ratio": self.norm_ratio,
            "missing": self.missing,
            **({} if self.overlap is None else {"c_geo": self.geodesic, "c_rm": self.overlap}),
        }

    def row(self) -> list[str]:
        overlap = [] if self.overlap is None else [_show(self.geodesic), f"{self.overlap:.3g}"]
        if self.missing:
            return [printable(self.name, 80), f"only in {'AB'.replace(self.missing, '')}", "–", "–", *overlap]
        near = [_tiny(self.error), _show(self.cosine), _show(self.norm_ratio)]
        return [printable(self.name, 80), *near, *overlap]


@dataclass(frozen=True, eq=False)
class Difference:
    """What `diff` returns; printing it shows the modules that are furthest apart.

    Args:
        names: of A and B.   modules: all of either, sorted by name.
    """

    names: tuple[str, str]
    modules: tuple[ModuleDifference, ...]

    @property
    def error(self) -> float:
        """‖A − B‖ / ‖A‖ over all modules; a missing one counts as zero."""
        return _relative(self._sum("apart"), self._sum("first"))

    @property
    def cosine(self) -> float | None:
        """The cosine over all modules."""
        return _cosine(self._sum("inner"), self._sum("first"), self._sum("second"))

    @property
    def missing(self) -> list[str]:
        """The modules that only one of the two has."""
        return [module.name for module in self.modules if module.missing]

    @property
    def largest(self) -> float:
        """The error of the worst module."""
        return max((module.error for module in self.modules), default=0.0)

    def worst(self, count: int = 10) -> list[ModuleDifference]:
        """The modules with the largest error."""
        return sorted(self.modules, key=lambda module: (-module.error, module.name))[:count]

    def check(self, max_error: float) -> None:
        """Hold every module against a limit.

        Raises:
            VerificationError: one is above it, or missing.
        """
        above = [module for module in self.modules if not module.error <= max_error]
        if above:
            worst = self.worst(1)[0]
            how = f"is missing in {worst.missing}" if worst.missing else f"is off by {_tiny(worst.error)}"
            raise VerificationError(
                f"{len(above)} of {len(self.modules)} modules differ by more than {max_error:g} of their "
                f"norm; {printable(worst.name)} {how}. If that was meant, allow it with {say('max_error')}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an infinite error is null."""
        return {
            "sources": list(self.names),
            "error": _finite(self.error),
            "largest_error": _finite(self.largest),
            "cosine": self.cosine,
            "missing": self.missing,
            "modules": [module.to_dict() for module in self.modules],
        }

    def table(self, count: int = 10) -> list[list[str]]:
        """Rows of the worst modules, the header first."""
        more = ["C_geo", "C_RM"] * any(module.overlap is not None for module in self.modules)
        rows = [module.row() for module in self.worst(count)]
        return [["module", "error", "cosine", "‖B‖/‖A‖", *more], *rows]

    def summary(self) -> str:
        """The line below the table."""
        lacking = f", {len(self.missing)} only in one of them" if self.missing else ""
        return (
            f"{counted(len(self.modules), 'module')}{lacking}; error {_tiny(self.error)} over all, "
            f"{_tiny(self.largest)} in the worst; cosine {_show(self.cosine)}"
        )

    def __str__(self) -> str:
        return "\n".join([*wrapped([self._head()]), *fitted(self.table()), *wrapped([self.summary()])])

    def _repr_html_(self) -> str:
        return as_html(self.table(), [self._head(), self.summary()])

    def to_frame(self) -> Any:
        """A `pandas.DataFrame` with a row for each module; pandas must be installed."""
        return as_frame([module.to_dict() for module in self.modules])

    def __repr__(self) -> str:
        return f"<Difference of {self._head()}: {self.summary()}>"

    def _head(self) -> str:
        return f"A {printable(self.names[0])}, B {printable(self.names[1])}"

    def _sum(self, name: str) -> float:
        return math.fsum(getattr(module, name) for module in self.modules)


@spelled("diff")
@checked("overlap")
def diff(
    a: str | Path | Adapter,
    b: str | Path | Adapter,
    *,
    overlap: bool = False,
    **asked: Any,
) -> Difference:
    """Compare two adapters by their updates ΔW. Factors, ranks, scales and types may differ.

    Args:
        a, b: as for `combine`.
        overlap: measure too how much they change the same entries: AlignGuard's C_geo, and its C_RM with all
            entries alike, since how its paper weighs them is in no code. This forms each ΔW, rows at a time.
        {asked}

    Raises:
        SourceError, IncompatibleError: as `load`; also for NaN, and for modules of other shapes.

    >>> one = LowRank(np.array([[1.0], [0.0]]), np.array([[3.0, 4.0]]))
    >>> print(diff(Adapter.of({"q": one}, "old"), Adapter.of({"q": 1.5 * one}, "new")))
    A old, B new
    module    error  cosine  ‖B‖/‖A‖
    q       5.0e-01   1.000    1.500
    1 module; error 5.0e-01 over all, 5.0e-01 in the worst; cosine 1.000
    """
    request = Request(**part("diff", None, asked)[0])
    opened = identified(open_all([Ingredient(a), Ingredient(b)], request), request)
    first, second = comparable(side_by_side(opened))
    targets = list(align([first, second]))

    def compared(target: Target) -> ModuleDifference:
        found = _module(str(target), [s[target] if target in s else None for s in (first, second)], overlap)
        stage.step()
        return found

    with (
        unchanged(*(each.provenance.originals for each in opened)),
        Stage(request.tell, "comparing", len(targets)) as stage,
        workers(request.effort.workers, stage.tick) as run,
    ):
        found: Iterable[ModuleDifference] = run(compared, targets)
        modules = [*found, *_extras(first, second, overlap)]
    modules.sort(key=lambda module: module.name)
    return Difference((first.name, second.name), tuple(modules))


def _module(name: str, sides: Sequence[LowRank | None], overlap: bool) -> ModuleDifference:
    present = [side for side in sides if side is not None]
    try:
        with np.errstate(over="raise", invalid="raise"):
            if len(present) == 1:
                energy = _energy(cores(present[0], present[0])[0])
                alone = _lonely(name, energy, in_first=sides[0] is not None)
                return replace(alone, overlap=0.0) if overlap else alone
            near = _pair(name, *cores(*present))
            return replace(near, overlap=overlapping(*present)) if overlap else near
    except ArithmeticError:
        raise SourceError(
            f"{printable(name)} holds NaN, infinity or numbers whose squares overflow float64: its training "
            "diverged or the file is damaged."
        ) from None


def overlapping(first: LowRank, second: LowRank) -> float:
    """Σ |Aᵢⱼ Bᵢⱼ|, some rows of both updates at a time.

    >>> one = LowRank(np.array([[1.0], [0.0]]), np.array([[3.0, -4.0]]))
    >>> overlapping(one, one)
    25.0
    """
    total = 0.0
    for start in range(0, len(first.up), ROWS):
        rows = slice(start, start + ROWS)
        tiles = [each.scale * (wide(each.up[rows]) @ wide(each.down)) for each in (first, second)]
        total += float(np.abs(tiles[0] * tiles[1]).sum())
    return total


def cores(first: LowRank, second: LowRank) -> tuple[Array, Array]:
    """Two small matrices with the norms, the inner product and the difference of the two updates.

    With ``[up₁ | up₂] = Q R`` and ``[down₁; down₂]ᵀ = Z S`` an update is ``Q (Rₜ Sₜᵀ) Zᵀ``. Nothing is
    squared before the two are subtracted, so the floor of ‖A − B‖/‖A‖ is rounding, about 1e-15, not 1e-8.

    Raises:
        ArithmeticError: a factor holds NaN or infinity, or squares overflow.
    """
    left = _triangle([wide(each.up) for each in (first, second)])
    right = _triangle([wide(each.down).T for each in (first, second)])
    k = first.rank
    core = first.scale * (left[:, :k] @ right[:, :k].T)
    if _same(first, second):  # the very same numbers are apart by 0, not by rounding
        return core, core
    return core, second.scale * (left[:, k:] @ right[:, k:].T)


def _triangle(blocks: list[Array]) -> Array:
    stacked = np.concatenate(blocks, axis=1)
    if not np.isfinite(stacked).all():
        raise ArithmeticError
    return np.asarray(np.linalg.qr(stacked, mode="r"))


def _same(first: LowRank, second: LowRank) -> bool:
    pairs = ((first.up, second.up), (first.down, second.down))
    return first.scale == second.scale and all(np.array_equal(x, y) for x, y in pairs)


def _extras(first: Adapter, second: Adapter, overlap: bool) -> Iterable[ModuleDifference]:
    """The tensors that are no low-rank pair: heads, biases, whatever was kept."""
    for key in sorted(first.extras.keys() | second.extras.keys()):
        found = _extra(key, [s.extras[key] for s in (first, second) if key in s.extras], first)
        yield replace(found, overlap=found.overlap or 0.0) if overlap else replace(found, overlap=None)


def _extra(key: str, there: Sequence[Tensor], first: Adapter) -> ModuleDifference:
    with np.errstate(over="ignore", invalid="ignore"):  # NaN stays NaN: a head may hold it
        if len(there) == 1:
            return _lonely(key, _energy_of(there[0]), in_first=key in first.extras)
        if there[0].shape != there[1].shape:
            one, other = map(_energy_of, there)
            return ModuleDifference(key, one, other, one + other, 0.0)
        sums = np.zeros(5)  # a head is large: no more of it is held than a piece
        for left, right in zip(*map(pieces, there), strict=True):
            a, b = wide(left), wide(right)
            sums += _energy(a), _energy(b), _energy(a - b), (a * b).sum(), np.abs(a * b).sum()
        one, other, apart, inner, overlap = sums.tolist()
        return ModuleDifference(key, one, other, apart, inner, overlap=overlap)


def _energy_of(tensor: Tensor) -> float:
    return sum((_energy(wide(each)) for each in pieces(tensor)), 0.0)


def _lonely(name: str, energy: float, in_first: bool) -> ModuleDifference:
    sides = (energy, 0.0) if in_first else (0.0, energy)
    return ModuleDifference(name, *sides, apart=energy, inner=0.0, missing="B" if in_first else "A")


def _pair(name: str, a: Array, b: Array) -> ModuleDifference:
    return ModuleDifference(name, _energy(a), _energy(b), _energy(a - b), float((a * b).sum()))


def _energy(matrix: Array) -> float:
    return float((matrix**2).sum())


def _relative(apart: float, whole: float) -> float:
    if apart == 0:
        return 0.0
    return math.sqrt(apart / whole) if whole > 0 else math.inf


def _cosine(inner: float, first: float, second: float) -> float | None:
    return inner / math.sqrt(first) / math.sqrt(second) if first > 0 and second > 0 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _tiny(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _show(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
