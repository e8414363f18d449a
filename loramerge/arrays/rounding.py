"""Stores merged factors in a float type, and measures the error of that."""

from __future__ import annotations

import numpy as np

from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array, namespace, ratio
from loramerge.arrays.dtypes import wide
from loramerge.errors import IncompatibleError, printable, say


def store(up: Array, down: Array, dtype: str, rank: int, name: str) -> tuple[Array, Array]:
    """up (out, k) and down (k, in) padded with zeros to `rank` units and cast.

    In float16 a unit whose largest entries are far apart is first balanced by a power of two, which is
    exact, so that neither half overflows or vanishes.

    Raises:
        IncompatibleError: a value does not fit the type even then.
    """
    if dtype == "F16":
        split = _split(up, down)
        up, down = up * split, down / split[:, None]
    with np.errstate(over="ignore", under="ignore"):
        pair = up.astype(dtypes.FLOATS[dtype]), down.astype(dtypes.FLOATS[dtype])
    if not all(namespace(half).isfinite(wide(half)).all() for half in pair):
        raise IncompatibleError(
            f"The merge of {printable(name)} does not fit {dtypes.word(dtype)} (largest value "
            f"{dtypes.largest(dtype):.3g}): use {say('dtype', 'bfloat16')} or float32."
        )
    return _padded(pair[0], 1, rank), _padded(pair[1], 0, rank)


def _split(up: Array, down: Array) -> Array:
    """(k,) powers of two that bring the peaks of both halves together, where one is near a limit."""
    xp = namespace(up)
    peaks = xp.abs(up).max(axis=0), xp.abs(down).max(axis=1)
    high, low = xp.maximum(*peaks), xp.minimum(*peaks)
    risky = (low > 0) & ((high > 2.0**14) | (low < 2.0**-8))
    apart = xp.where(risky, ratio(peaks[1], peaks[0], risky), 1.0)
    return xp.exp2(xp.round(xp.log2(apart) / 2))


def _padded(factor: Array, axis: int, rank: int) -> Array:
    missing = rank - factor.shape[axis]
    widths = [(0, missing if a == axis else 0) for a in range(2)]
    return namespace(factor).pad(factor, widths) if missing else factor


def error(up: Array, down: Array, stored_up: Array, stored_down: Array) -> float:
    """‖up @ down − stored_up @ stored_down‖² without forming either.

    As (up − up') down + up' (down − down'), whose Grams hold no large terms that cancel.
    """
    k = up.shape[1]
    kept_up, kept_down = wide(stored_up[:, :k]), wide(stored_down[:k])
    if stored_up.dtype == np.float16:  # undo the exact balancing, so that equal halves are compared
        split = _split(up, down)
        up, down = up * split, down / split[:, None]
    off_up, off_down = up - kept_up, down - kept_down
    total = _product(off_up, off_up, down, down) if off_up.any() else 0.0
    if off_down.any():
        total += 2 * _product(off_up, kept_up, down, off_down) if off_up.any() else 0.0
        total += _product(kept_up, kept_up, off_down, off_down)
    return max(total, 0.0)


def _product(up1: Array, up2: Array, down1: Array, down2: Array) -> float:
    """⟨up1 @ down1, up2 @ down2⟩_F from the factors."""
    return float(((up1.T @ up2) * (down1 @ down2.T)).sum())


def bound(stored_up: Array, stored_down: Array, dtype: str) -> float:
    """The largest error² that honest rounding can cause: more means that the writing went wrong.

    Every entry is off by at most half a spacing. Values that vanish in float16 exceed this bound, on purpose.
    """
    up, down = wide(stored_up), wide(stored_down)
    xp = namespace(up)
    squares = xp.einsum("ij,ij->j", up, up), xp.einsum("ij,ij->i", down, down)  # (k,)
    return float((2 * dtypes.epsilon(dtype) * xp.sqrt(squares[0] * squares[1]).sum()) ** 2)
