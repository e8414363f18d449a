"""LoKr: a Kronecker product, whose sides are whole, or factored, or factored with a Tucker core.

    ΔW = kron(w₁, w₂) = kron(a₁, a₂) @ kron(b₁, b₂) where w = a b

LyCORIS and PEFT differ in two things. LyCORIS has scale 1 where both sides are whole, PEFT always alpha / r.
And with a whole w₂ of a 1-d convolution PEFT's product has the sides exchanged: w₂[p, q, l] w₁[i, j] stands
at output (p, i), input (q, j), since `torch.kron` lines up the last dimensions. (arXiv:2309.14859)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.arrays.backend import Array
from loramerge.errors import SourceError
from loramerge.formats.files.views import View
from loramerge.formats.forms.checks import check_dimensions, misfit
from loramerge.formats.forms.factors import Pair, Product, half, split
from loramerge.formats.forms.form import Form, Given, Parts, Update


def make(parts: Parts, given: Given) -> Update:
    """Its Kronecker pair, as LyCORIS has it."""
    check_dimensions(given.where, parts)
    one, two = (_side(parts, i, given) for i in (1, 2))
    (o1, i1), (o2, i2), cut = one.size, two.size, len(one.tensors)

    def pair(*arrays: Array) -> Pair:
        (a1, b1), (a2, b2) = one.split(arrays[:cut]), two.split(arrays[cut:])
        return np.kron(a1, a2), np.kron(b1, b2)

    def whole(*arrays: Array) -> Array:
        return np.kron(one.whole(arrays[:cut]), two.whole(arrays[cut:]))

    product = Product([*one.tensors, *two.tensors], (o1 * o2, i1 * i2), one.units * two.units, pair, whole)
    rank = two.rank or one.rank
    return Update(*product.factors(), rank, two.kernel, full=rank is None)


def make_peft(parts: Parts, given: Given) -> Update:
    """The same as PEFT has it."""
    update, second = make(parts, given), parts.get("lokr_w2")
    if second is not None and len(second.shape) == 3:
        update = _exchanged(update, second.shape)
    return replace(update, rank=update.rank or given.rank)


@dataclass(frozen=True, eq=False, slots=True)
class Side:
    """One side of the product. `rank`: what alpha is divided by; None if it is whole."""

    tensors: list[Tensor]
    size: tuple[int, int]
    units: int
    rank: int | None
    kernel: tuple[int, ...]

    def split(self, arrays: tuple[Array, ...]) -> Pair:
        return half(*arrays) if len(arrays) > 1 else split(arrays[0].reshape(self.size))

    def whole(self, arrays: tuple[Array, ...]) -> Array:
        if len(arrays) == 1:
            return arrays[0].reshape(self.size)
        left, right = half(*arrays)
        return left @ right


def _side(parts: Parts, i: int, given: Given) -> Side:
    w, a, b, t = (parts.get(name) for name in (f"lokr_w{i}", f"lokr_w{i}_a", f"lokr_w{i}_b", f"lokr_t{i}"))
    if w is not None and a is b is t is None:
        size = w.shape[0], prod(w.shape[1:])
        return Side([w], size, min(size), None, w.shape[2:])
    if w is not None or a is None or b is None:
        raise SourceError(
            f"The side {i} of the LoKr {given.where} is lokr_w{i}, or lokr_w{i}_a and lokr_w{i}_b, and "
            + ("both are there." if w is not None else f"{_lacking(a, b, i)} is missing.")
        )
    if t is None:
        if len(a.shape) != 2 or a.shape[1] != b.shape[0]:
            raise misfit(given.where, parts)
        return Side([a, b], (a.shape[0], prod(b.shape[1:])), b.shape[0], b.shape[0], b.shape[2:])
    if len(a.shape) != 2 or len(b.shape) != 2 or t.shape[:2] != (a.shape[0], b.shape[0]):
        raise misfit(given.where, parts)
    size = a.shape[1], b.shape[1] * prod(t.shape[2:])
    return Side([a, b, t], size, a.shape[0], b.shape[0], t.shape[2:])


def _lacking(a: Tensor | None, b: Tensor | None, i: int) -> str:
    if a is b is None:
        return f"lokr_w{i}"
    return f"lokr_w{i}_a" if a is None else f"lokr_w{i}_b"


def _exchanged(update: Update, second: tuple[int, ...]) -> Update:
    """Outputs (i, p) in the order (p, i), inputs (j, q, l) in the order (q, j, l)."""
    outs, ins, length = second

    def up(array: Array) -> Array:
        return array.reshape(-1, outs, array.shape[1]).swapaxes(0, 1).reshape(array.shape)

    def down(array: Array) -> Array:
        return array.reshape(len(array), -1, ins, length).swapaxes(1, 2).reshape(array.shape)

    left, right = update.up, update.down
    return replace(
        update,
        up=View((left,), left.shape, left.dtype, up),
        down=View((right,), right.shape, right.dtype, down),
    )


SIDES = {part: (part,) for i in (1, 2) for part in (f"lokr_w{i}", f"lokr_w{i}_a", f"lokr_w{i}_b")}
CORES = {part: (part,) for part in ("lokr_t1", "lokr_t2")}

LOKR = Form(
    name="lokr",
    words="LoKr",
    formula="`kron(w₁, w₂)`; scale 1 where both are whole",
    units="product of the sides'",
    make=make,
    image=SIDES | CORES,
)
PEFT_LOKR = Form(
    name="peft_lokr",
    words="LoKr",
    formula="`kron(w₁, w₂)`; of a 1-d convolution with a whole w₂ with the sides exchanged",
    units="product of the sides'",
    make=make_peft,
    peft=SIDES | {"lokr_t2": ("lokr_t2",)},
    types={"LOKR": "alpha"},
    linear=tuple((part,) for part in (*SIDES, "lokr_t2")),
)
