"""Adapters taken apart into rank-1 units, in batches of modules that share a rank signature."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loramerge.adapter import Adapter
from loramerge.backend import Array
from loramerge.dtypes import wide
from loramerge.errors import IncompatibleError, SourceError, printable
from loramerge.gram import Grams
from loramerge.limits import check_units
from loramerge.lowrank import LowRank
from loramerge.results import PeakRescaled, Remix, Result
from loramerge.target import Target

Signature = tuple[int, ...]  # the rank of every source in a module; 0 where it has none
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True, eq=False, slots=True)
class Units:
    """The units of M modules with one rank signature; R = Σ r_t of them in each.

    Args:
        targets: (M,) the modules, of any shapes.
        sources: (T,) names, for messages.
        parts: (M, T) what each source has there (None: nothing), in its stored dtype.
    """

    targets: tuple[Target, ...]
    sources: tuple[str, ...]
    parts: tuple[tuple[LowRank | None, ...], ...]

    @property
    def owner(self) -> Array:
        """(R,) the source of each unit."""
        ranks = [0 if part is None else part.rank for part in self.parts[0]]
        return np.repeat(np.arange(len(ranks)), ranks)

    @property
    def scale(self) -> Array:
        """(M, R) the scale of each unit, float64."""
        return np.array([[p.scale for p in row if p for _ in range(p.rank)] for row in self.parts])

    def factors(self, module: int) -> tuple[Array, Array]:
        """up (out, R) and down (R, in) of one module in float64, scales not folded."""
        present = [part for part in self.parts[module] if part]
        up = np.concatenate([wide(part.up) for part in present], axis=1)
        return up, np.concatenate([wide(part.down) for part in present])

    def grams(self, run: Map = map, balance: bool = True) -> Grams:
        """The Grams of all modules.

        With `balance` each unit is split evenly between up and down by a power of two, which is exact;
        without it a split of 1e8 between them would cost every digit. Without `balance` the units are
        as stored, the scale on the up side: for methods whose published form is bound to raw factors.

        Raises:
            SourceError: a factor holds NaN or infinity.
        """
        pairs = list(run(self._gram, range(len(self.targets))))
        up, down = (np.stack(side) for side in zip(*pairs, strict=True))
        split = _split(up, down, self.scale) if balance else np.ones(self.scale.shape)
        left, right = self.scale / split, split  # (M, R) each
        eye = np.eye(up.shape[-1])
        up = left[:, :, None] * up * left[:, None, :]
        down = right[:, :, None] * down * right[:, None, :]
        live = (up * down).diagonal(axis1=-2, axis2=-1) > 0
        if balance:  # the other half of a zero unit may be of any size: its rounding must not hide the rest
            up, down = (np.where(live[:, :, None] & live[:, None, :], side, 0.0) for side in (up, down))
        lift = Remix(left[:, :, None] * eye, right[:, :, None] * eye)
        return Grams(up, down, self.owner, live, lift, tuple(map(str, self.targets)))

    def _gram(self, module: int) -> tuple[Array, Array]:
        up, down = self.factors(module)
        with np.errstate(over="ignore", invalid="ignore"):  # blamed on its source below
            grams = up.T @ up, down @ down.T
        if not all(np.isfinite(gram.trace()) for gram in grams):
            self._blame(module)
        return grams

    def _blame(self, module: int) -> None:
        for source, part in zip(self.sources, self.parts[module], strict=True):
            for side in ("up", "down"):
                if part and not np.isfinite(wide(getattr(part, side))).all():
                    raise SourceError(
                        f"{printable(source)} has NaN or infinity in the {side} factor of "
                        f"{printable(self.targets[module])}: its training diverged or the file is damaged."
                    )
        raise SourceError(f"The factors of {printable(self.targets[module])} overflow float64.")

    def remix(self, module: int, remix: Remix) -> tuple[Array, Array]:
        """up' (out, k) and down' (k, in) of one module, float64."""
        up, down = self.factors(module)
        return up @ remix.P[module], remix.Q[module] @ down

    def settle(self, result: Result, run: Map = map) -> Remix:
        """The remix that a result comes to, once what is not in the Grams has been measured."""
        if isinstance(result, Remix):
            return result
        stretch = np.stack(list(run(lambda m: self._stretch(m, result), range(len(self.targets)))))
        P = result.remix.P * (stretch * result.gain[:, None])[:, None, :]
        return Remix(P, stretch[:, :, None] * result.remix.Q)

    def _stretch(self, module: int, result: PeakRescaled) -> Array:
        """(k,) mean peak of the members over the peak of the centroid."""
        up, down = self.factors(module)
        left, right = np.abs(result.left[module]), np.abs(result.right[module])
        peak = np.maximum(left * np.abs(up).max(axis=0), right * np.abs(down).max(axis=1))  # (R,)
        up, down = self.remix(module, result.remix)
        length = np.maximum(np.abs(up).max(axis=0), np.abs(down).max(axis=1))  # (k,)
        wanted = peak @ result.shares[module]
        return np.divide(wanted, length, out=np.zeros_like(length), where=length > 0)


def _split(up: Array, down: Array, scale: Array) -> Array:
    """The power of two (M, R) that moves from up to down so that both halves weigh alike."""
    length_up = np.sqrt(up.diagonal(axis1=-2, axis2=-1)) * np.abs(scale)
    length_down = np.sqrt(down.diagonal(axis1=-2, axis2=-1))
    alive = (length_up > 0) & (length_down > 0)
    ratio = np.divide(length_up, length_down, out=np.ones_like(scale), where=alive)
    return np.exp2(np.round(np.log2(ratio) / 2))


def align(adapters: Sequence[Adapter]) -> dict[Target, Signature]:
    """Every module that some source has, sorted, with the rank of each source in it.

    Raises:
        IncompatibleError: two sources disagree about the shape or kind of one module, or have too many units.
    """
    targets = sorted({target for adapter in adapters for target in adapter})
    for target in targets:
        _agree(target, [adapter for adapter in adapters if target in adapter.slots])
    return {t: tuple(a.slots[t].rank if t in a.slots else 0 for a in adapters) for t in targets}


def _agree(target: Target, adapters: Sequence[Adapter]) -> None:
    first = adapters[0]
    check_units(str(target), first.slots[target].shape, [a.slots[target].rank for a in adapters])
    for other in adapters[1:]:
        if first.slots[target].shape != other.slots[target].shape:
            raise IncompatibleError(
                f"{printable(target)} is {_by(first.slots[target].shape)} in {printable(first.name)} but "
                f"{_by(other.slots[target].shape)} in {printable(other.name)}: they were trained on "
                "different base models and cannot be merged."
            )


def _by(shape: tuple[int, int]) -> str:
    return f"{shape[0]}×{shape[1]}"


def batches(
    adapters: Sequence[Adapter], signatures: dict[Target, Signature], limit: int = 64 << 20
) -> Iterator[Units]:
    """Read the modules in batches of one rank signature, at most about `limit` bytes of factors each."""
    groups: dict[tuple[Signature, int], list[Target]] = defaultdict(list)
    filled: dict[Signature, int] = defaultdict(int)
    for target, signature in signatures.items():
        slots = [adapter.slots[target] for adapter in adapters if target in adapter.slots]
        filled[signature] += sum(8 * slot.rank * sum(slot.shape) for slot in slots)
        groups[signature, filled[signature] // limit].append(target)
    names = tuple(adapter.name for adapter in adapters)
    for targets in groups.values():
        yield Units(tuple(targets), names, tuple(_read(adapters, target) for target in targets))


def _read(adapters: Sequence[Adapter], target: Target) -> tuple[LowRank | None, ...]:
    return tuple(adapter[target] if target in adapter.slots else None for adapter in adapters)
