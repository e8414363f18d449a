"""Adapters taken apart into rank-1 units, in batches of modules that share a rank signature."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from loramerge.adapters.adapter import Adapter, Slot
from loramerge.adapters.limits import check_units
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array, host, namespace, positions, ratio
from loramerge.arrays.dtypes import wide
from loramerge.arrays.frames import Frame, framed
from loramerge.arrays.gram import Grams, Signature
from loramerge.arrays.remix import Fitted, PeakRescaled, Remix, Result
from loramerge.arrays.workers import go_on
from loramerge.errors import IncompatibleError, SourceError, printable, say
from loramerge.formats.vocabulary import named
from loramerge.sources.extremes import refusal, suspects
from loramerge.sources.labels import has_labels

if TYPE_CHECKING:
    from loramerge.cuda import Gpu
    from loramerge.cuda.batch import Batch

Side = Callable[[int], Array]  # up (m, out, R) of some modules, of 0, and down (m, R, in), of 1


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Units:
    """The units of M modules with one rank signature; R = Σ r_t of them in each.

    Factors are read when asked for and not kept: memory follows the module at hand.

    Args:
        targets: (M,) the modules, of any shapes.
        adapters: (T,) the sources.
        signature: (T,) the rank of each source in these modules; 0 where it has none.
        gpu: where they are merged, if not on the host; there they come as a whole, ahead of their use.
    """

    targets: tuple[Target, ...]
    adapters: tuple[Adapter, ...]
    signature: Signature
    gpu: Batch | None = None

    @property
    def owner(self) -> Array:
        """(R,) the source of each unit."""
        return np.repeat(np.arange(len(self.signature)), self.signature)

    @property
    def scale(self) -> Array:
        """(M, R) the scale of each unit, float64."""
        each = [[slot.scale for slot in self._slots(m)] for m in range(len(self.targets))]
        return np.repeat(np.array(each), [rank for rank in self.signature if rank], axis=1)

    def _slots(self, module: int) -> list[Slot]:
        target = self.targets[module]
        return [a.slots[target] for a, rank in zip(self.adapters, self.signature, strict=True) if rank]

    def shape(self, module: int) -> tuple[int, int]:
        """(out, in) of one module."""
        return self._slots(module)[0].shape

    def up(self, module: int) -> Array:
        """(out, R) of one module in float64, scales not folded."""
        if self.gpu is not None:
            return self.gpu.factor(module, axis=0)
        return _widened([slot.up.read() for slot in self._slots(module)], axis=1)

    def down(self, module: int) -> Array:
        """(R, in) of one module in float64."""
        if self.gpu is not None:
            return self.gpu.factor(module, axis=1)
        return _widened([slot.down.read() for slot in self._slots(module)], axis=0)

    def on(self, gpu: Gpu) -> Units:
        """The same, merged there."""
        modules = range(len(self.targets))
        likes = [tuple((s.shape, s.up.dtype, s.down.dtype) for s in self._slots(m)) for m in modules]
        return replace(self, gpu=gpu.batch(likes, self._stored))

    def _stored(self, module: int) -> tuple[list[Array], list[Array]]:
        slots = self._slots(module)
        return [slot.up.read() for slot in slots], [slot.down.read() for slot in slots]

    def kept(self) -> Units:
        """The same for later: a GPU forgets the factors, which are read again where they are asked for."""
        if self.gpu is not None:
            self.gpu.drop()
        return self

    def seen(self, frame: Frame) -> tuple[Grams, Grams]:
        """The Grams as they are and in the frame of a method."""
        plain = self.grams(balance=frame != "stored")
        return plain, framed(plain, frame)

    def read(self, module: int) -> tuple[Array, Array]:
        """up (out, R) and down (R, in) of one module."""
        return self.up(module), self.down(module)

    def grams(self, balance: bool = True) -> Grams:
        """The Grams of all modules.

        With `balance` each unit is split evenly between up and down by a power of two, which is exact;
        without it a split of 1e8 between them would cost every digit. Without `balance` the units are
        as stored, the scale on the up side: for methods whose published form is bound to raw factors.

        Raises:
            SourceError: a factor holds NaN or infinity, or numbers whose squares leave float64.
        """
        up, down = self._grams() if self.gpu is None else self.gpu.grams()
        xp = namespace(up)
        self._check_finite(up, down)
        scale = xp.asarray(self.scale)
        self._check_sizes(up, down, scale)
        split = _split(up, down, scale) if balance else xp.ones(scale.shape)
        left, right = scale / split, split  # (M, R) each
        eye = xp.eye(up.shape[-1])
        up = left[:, :, None] * up * left[:, None, :]
        down = right[:, :, None] * down * right[:, None, :]
        live = (up * down).diagonal(axis1=-2, axis2=-1) > 0
        if balance:  # the other half of a zero unit may be of any size: its rounding must not hide the rest
            up, down = (xp.where(live[:, :, None] & live[:, None, :], side, 0.0) for side in (up, down))
        lift = Remix(left[:, :, None] * eye, right[:, :, None] * eye)
        names = tuple(adapter.name for adapter in self.adapters)
        return Grams(
            up, down, self.owner, live, lift, tuple(map(str, self.targets)), sources=names, read=self.read
        )

    def _grams(self) -> tuple[Array, Array]:
        """upᵀ up and down downᵀ (M, R, R), module by module: a core holds no more in its cache."""
        pairs = [self._gram(module) for module in range(len(self.targets))]
        xp = namespace(pairs[0][0])
        up, down = (xp.stack(side) for side in zip(*pairs, strict=True))
        return up, down

    def _gram(self, module: int) -> tuple[Array, Array]:
        go_on()
        up, down = self.up(module), self.down(module)
        with np.errstate(over="ignore", invalid="ignore"):  # blamed on its source
            return up.T @ up, down @ down.T

    def _check_finite(self, up: Array, down: Array) -> None:
        """Raises SourceError: Grams (M, R, R) of some module are not finite."""
        traces = host(up.trace(axis1=1, axis2=2)), host(down.trace(axis1=1, axis2=2))
        for module in positions(~(np.isfinite(traces[0]) & np.isfinite(traces[1]))):
            self._blame(module)

    def _blame(self, module: int) -> None:
        target = self.targets[module]
        for adapter in self.adapters:
            for side in ("up", "down") if target in adapter.slots else ():
                if not np.isfinite(wide(getattr(adapter.slots[target], side).read())).all():
                    raise SourceError(
                        f"{printable(adapter.name)} has NaN or infinity in the {side} factor of "
                        f"{printable(target)}: its training diverged or the file is damaged."
                    )
        raise SourceError(
            f"The factors of {printable(target)} are so large that their squares overflow float64: the "
            "training of a source diverged, or its file is damaged."
        )

    def _check_sizes(self, up: Array, down: Array, scale: Array) -> None:
        """Refuse units whose squares leave float64, from the Grams (M, R, R)."""
        left, right = (host(namespace(side).sqrt(side.diagonal(axis1=-2, axis2=-1))) for side in (up, down))
        for how, source, m, units in suspects(left, right, host(scale), self.owner):
            if any(self._lives(m, unit) for unit in units):
                raise refusal(how, self.adapters[source].name, str(self.targets[m]))

    def _lives(self, module: int, unit: int) -> bool:
        """Whether both halves of a unit hold a number: its squares may be zero although it is not."""
        halves = self.up(module)[:, unit], self.down(module)[unit], self.scale[module, unit]
        return all(bool(np.any(host(half))) for half in halves)

    def settle(self, result: Result) -> Remix | Fitted:
        """The remix of a result, after measuring what the Grams do not tell."""
        if not isinstance(result, PeakRescaled):
            return result
        found = [(modules, _stretch(side, modules, result)) for modules, side in self._alike()]
        order, each = zip(*found, strict=True)
        stretch = namespace(each[0]).concatenate(each)[np.argsort(np.concatenate(order))]
        P = result.remix.P * (stretch * result.gain[:, None])[:, None, :]
        return Remix(P, stretch[:, :, None] * result.remix.Q)

    def remix(self, module: int, remix: Remix) -> tuple[Array, Array]:
        """up' (out, k) and down' (k, in) of one module, float64."""
        if self.gpu is not None:
            return self.gpu.mixed(remix.P, remix.Q, module)
        P, Q, up, down = remix.P[module], remix.Q[module], self.up(module), self.down(module)
        if _is_diagonal(P) and _is_diagonal(Q):  # the sum itself: nothing is mixed
            return up * P.diagonal(), Q.diagonal()[:, None] * down
        return up @ P, Q @ down

    def _alike(self) -> Iterator[tuple[Array, Side]]:
        """Modules (m,) that are looked at together, and how to come by one side of them: on the host one, of
        which a core holds more in its cache."""
        if self.gpu is not None:
            yield from self.gpu.alike()
            return
        for module in range(len(self.targets)):
            go_on()
            yield np.array([module]), partial(self._side, module)

    def _side(self, module: int, axis: int) -> Array:
        return (self.down if axis else self.up)(module)[None]


def _stretch(side: Side, modules: Array, result: PeakRescaled) -> Array:
    """(m, k) mean peak of the members over the peak of the centroid."""
    lifts = (result.left[modules], result.remix.P[modules]), (result.right[modules], result.remix.Q[modules])
    (high, length), (wide, width) = (_peaks(side(axis), *lift, axis) for axis, lift in enumerate(lifts))
    xp = namespace(high)
    wanted = (xp.maximum(high, wide)[:, None, :] @ result.shares[modules])[:, 0]
    length = xp.maximum(length, width)
    return ratio(wanted, length, length > 0)


def _peaks(factor: Array, lift: Array, mix: Array, axis: int) -> tuple[Array, Array]:
    """The largest |entry| of one half of the units (m, R), and of the centroids (m, k)."""
    xp = namespace(factor)

    def largest(stack: Array) -> Array:
        return xp.maximum(stack.max(axis=1 + axis), -stack.min(axis=1 + axis))

    return xp.abs(lift) * largest(factor), largest(mix @ factor if axis else factor @ mix)


def _widened(parts: Sequence[Array], axis: int) -> Array:
    """The factors in float64, on the host or on the GPU: all later steps work where this puts them."""
    with np.errstate(invalid="ignore"):  # a signalling NaN would warn; the Grams tell of every NaN
        return np.concatenate(parts, axis=axis, dtype=np.float64)


def _is_diagonal(matrix: Array) -> bool:
    count = namespace(matrix).count_nonzero
    return matrix.shape[0] == matrix.shape[1] and bool(count(matrix) == count(matrix.diagonal()))


def _split(up: Array, down: Array, scale: Array) -> Array:
    """The power of two (M, R) that moves from up to down so that both halves weigh alike."""
    xp = namespace(up)
    length_up = xp.sqrt(up.diagonal(axis1=-2, axis2=-1)) * xp.abs(scale)
    length_down = xp.sqrt(down.diagonal(axis1=-2, axis2=-1))
    alive = (length_up > 0) & (length_down > 0)
    apart = xp.where(alive, ratio(length_up, length_down, alive), 1.0)
    return xp.exp2(xp.round(xp.log2(apart) / 2))


def align(adapters: Sequence[Adapter], limited: bool = True) -> dict[Target, Signature]:
    """Every module that some source has, sorted, with the rank of each source in it.

    Args:
        limited: whether all their units will be held at once; else those of one source are.

    Raises:
        IncompatibleError: two sources disagree about the shape or kind of one module, or have too many units.
    """
    targets = sorted({target for adapter in adapters for target in adapter})
    for target in targets:
        own = [adapter for adapter in adapters if target in adapter.slots]
        _agree(target, own)
        ranks = [adapter.slots[target].rank for adapter in own]
        for held in [ranks] if limited else [[rank] for rank in ranks]:
            check_units(str(target), own[0].slots[target].shape, held)
    return {t: tuple(a.slots[t].rank if t in a.slots else 0 for a in adapters) for t in targets}


def _agree(target: Target, adapters: Sequence[Adapter]) -> None:
    first = adapters[0]
    for other in adapters[1:]:
        if first.slots[target].shape != other.slots[target].shape:
            rows = "tokens" if named(target.path) else "labels" if has_labels(target.path) else ""
            leave = (
                f", unless it is for other {rows}: then leave it out with {say('exclude')}" if rows else ""
            )
            raise IncompatibleError(
                f"{printable(target)} is {_by(first.slots[target].shape)} in {printable(first.name)} but "
                f"{_by(other.slots[target].shape)} in {printable(other.name)}: they were trained on "
                f"different base models and cannot be merged{leave}."
            )


def _by(shape: tuple[int, int]) -> str:
    return f"{shape[0]}×{shape[1]}"
