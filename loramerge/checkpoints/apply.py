"""One changed tensor of a model: updates are added in place, some rows at a time, and rounded once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from loramerge.adapters.adapter import Adapter, Tensor
from loramerge.adapters.lowrank import LowRank
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array
from loramerge.checkpoints import quantisation
from loramerge.checkpoints.changes import Change
from loramerge.checkpoints.checkpoint import Key
from loramerge.checkpoints.places import Place
from loramerge.errors import IncompatibleError, printable
from loramerge.formats.files.safetensors.dtypes import numpy_dtype

ENTRIES = 1 << 15  # that are widened at a time, in cache
FEW, SAMPLED = 16, 8  # pieces of which all are looked at; the share of more that is


@dataclass(frozen=True, slots=True)
class Fused:
    """What became of one tensor, as squares of Frobenius norms.

    Args:
        name: of the tensor.   added: ‖update‖².
        rounding: ‖weight + update − what is stored‖²; of a large tensor estimated from an eighth of it.
    """

    name: str
    added: float
    rounding: float


def applied(
    change: Change, adapter: Adapter, tensors: Mapping[Key, Tensor]
) -> tuple[dict[Key, Array], Fused]:
    """(key -> the tensors to write, the changed one and maybe its scales; what it cost).

    Raises:
        IncompatibleError: a value does not fit the type of the model.
    """
    scale = None if change.fresh else quantisation.scale_of(tensors, change.key)
    if scale is not None:
        return _rescaled(change, adapter, tensors, scale)
    kind = numpy_dtype(change.dtype)
    if kind is None or change.dtype not in (*dtypes.FLOATS, *quantisation.FLOAT8):
        raise IncompatibleError(
            f"{printable(change.key[1])} is stored as {change.dtype}, to which nothing can be added."
        )
    array = np.asarray(change.start.read())
    whole = array if array.dtype == kind else array.astype(kind)
    if change.rows is not None:
        indices, rows = change.rows
        whole[indices] = rows.read().astype(kind)
    wide = np.dtype(np.float32 if kind.itemsize < 4 else np.float64)
    added = rounding = 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit is refused by `_add`
        for place, left, right in _updates(change, adapter, wide):
            for view, part in _views(whole, place, left):
                added += _energy(part, right)
                rounding += _add(view, part, right, change)
    return {change.key: whole}, Fused(change.key[1], added, rounding)


def _updates(change: Change, adapter: Adapter, wide: np.dtype) -> Iterator[tuple[Place, Array, Array]]:
    """(place, left (a, r), right (r, b)): updates as products in the orientation of the tensor."""
    for target, place in change.added:
        update = adapter.slots[target].read()
        up = dtypes.wide(update.up if place.outs is None else update.up[place.outs]) * update.scale
        down = dtypes.wide(update.down)
        left, right = (down.T, up.T) if place.turned else (up, down)
        yield place, np.ascontiguousarray(left, wide), np.ascontiguousarray(right, wide)
    for bias, place in change.plain:
        vector = (dtypes.wide(bias.tensor.read()) * bias.scale).astype(wide)
        left = vector.reshape(len(vector), -1)
        yield place, left, np.eye(left.shape[1], dtype=wide)


def _views(whole: Array, place: Place, left: Array) -> Iterator[tuple[Array, Array]]:
    """(rows of the tensor, rows of the update that are added to them)."""
    flat = whole[place.index] if place.index >= 0 else whole
    flat = flat.reshape(len(flat), -1)
    top = 0
    for rows in place.rows or (slice(0, len(flat)),):
        high = rows.stop - rows.start
        yield flat[rows], left[top : top + high]
        top += high


def _energy(left: Array, right: Array) -> float:
    """‖left @ right‖², by products of the factors with themselves."""
    update = LowRank(left, right)
    return max(update.inner(update), 0.0)


def _add(view: Array, left: Array, right: Array, change: Change) -> float:
    """Add left @ right to a view in place; ‖rounding‖², from every eighth piece of many."""
    step = max(1, ENTRIES // max(1, view.shape[1]))
    sums, before = (np.empty((step, view.shape[1]), left.dtype) for _ in range(2))
    tops = range(0, len(view), step)
    every, off, seen, most = 1 if len(tops) < FEW else SAMPLED, 0.0, 0, _largest(change.dtype, left, right)
    for piece, top in enumerate(tops):
        rows = view[top : top + step]
        total, known = sums[: len(rows)], before[: len(rows)]
        np.matmul(left[top : top + step], right, out=total)
        np.copyto(known, rows)
        total += known
        if most is not None and not max(total.max(initial=0.0), -total.min(initial=0.0)) <= most:
            damaged = any(bool(np.isnan(each).any()) for each in (known, left, right))  # ∞ - ∞ is none, too
            raise _too_large(change, damaged)
        rows[...] = total
        if piece % every == 0:
            np.copyto(known, rows)
            total -= known
            off, seen = off + float(np.vdot(total, total)), seen + len(rows)
    if not off < np.inf:  # of a model whose numbers need no look at their size
        raise _too_large(change, damaged=True)
    return off * len(view) / max(seen, 1)


def _largest(dtype: str, left: Array, right: Array) -> float | None:
    """The largest value of a type, if it has a small range or the update may come near it."""
    if dtype in quantisation.FLOAT8:
        return quantisation.FLOAT8[dtype]
    most = dtypes.largest(dtype)
    reach = float(abs(left).max(initial=0.0)) * float(abs(right).max(initial=0.0)) * len(right)
    return None if reach < most / 4 and dtype != "F16" else most


def _too_large(change: Change, damaged: bool) -> IncompatibleError:
    if damaged:
        return IncompatibleError(
            f"{printable(change.key[1])} with the update holds values that are no numbers: the model or the "
            "adapter is damaged."
        )
    return IncompatibleError(
        f"{printable(change.key[1])} with the update does not fit {dtypes.word(change.dtype)}, the type of "
        "the model."
    )


def _rescaled(
    change: Change, adapter: Adapter, tensors: Mapping[Key, Tensor], scale: Key
) -> tuple[dict[Key, Array], Fused]:
    """A weight in 8-bit floats with its scales. A scale grows only where the sum does not fit."""
    before = quantisation.numbers(tensors, change.key)
    after = before.copy()
    for place, left, right in _updates(change, adapter, np.dtype(np.float64)):
        for view, part in _views(after, place, left):
            with np.errstate(over="ignore", invalid="ignore"):
                view += part @ right
    if not np.isfinite(after).all():
        raise _too_large(change, damaged=bool(np.isnan(before).any() or np.isnan(after).any()))
    kind = numpy_dtype(change.dtype)
    assert kind is not None
    scales = quantisation.rescaled(after, tensors[scale].read(), change.dtype)
    factors = quantisation.spread(scales.astype(np.float64), after.shape, change.key)
    most = quantisation.FLOAT8[change.dtype]
    shares = np.divide(after, factors, out=np.zeros_like(after), where=factors != 0)
    stored = np.clip(shares, -most, most).astype(kind)
    off = float(np.square(stored.astype(np.float64) * factors - after).sum())
    return {change.key: stored, scale: scales}, Fused(
        change.key[1], float(np.square(after - before).sum()), off
    )
