"""BOFT: the inputs of the weight turned in several steps, each of other blocks, and every output scaled.

    ΔW = diag(s) W Rᵀ − W, R = R_N … R_1, R_i = P_i diag(C(Q_i1), C(Q_i2), …) Pᵀ_i        s (out, 1)
    Q the skew part of what is stored, C(Q) = (1 − Q) (1 + Q)⁻¹        R (N, D, b, b), D · b = in

P_i deals the halves of blocks out like a butterfly of 2ⁱ of them. (arXiv:2311.06243)
"""

from __future__ import annotations

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.formats.forms.checks import misfit
from loramerge.formats.forms.factors import Product
from loramerge.formats.forms.form import Form, Given, Parts, Update
from loramerge.formats.forms.oft import cayley


def make(parts: Parts, given: Given) -> Update:
    """The matrix."""
    turns, stretch, (outs, ins) = parts["boft_R"], parts["boft_s"], given.layer.size
    if len(turns.shape) != 4 or turns.shape[2] != turns.shape[3] or stretch.shape != (outs, 1):
        raise misfit(given.where, parts)
    steps, blocks, block, _ = turns.shape
    if steps != given.whole("boft_n_butterfly_factor", steps):
        raise misfit(given.where, parts)
    if blocks * block != ins or (steps > 1 and (block % 2 or blocks % 2 ** (steps - 1))):
        raise misfit(given.where, parts)

    def whole(turns: Array, stretch: Array, weight: Array) -> Array:
        changed = weight
        for step in range(steps):
            order = butterfly(ins, block, step) if steps > 1 else np.arange(ins)
            skew = 0.5 * (turns[step] - turns[step].swapaxes(1, 2))
            inside = changed[:, np.argsort(order)].reshape(outs, blocks, block)
            inside = np.matmul(inside.swapaxes(0, 1), cayley(skew).swapaxes(1, 2)).swapaxes(0, 1)
            changed = inside.reshape(outs, ins)[:, order]
        result: Array = stretch * changed - weight
        return result

    return Update(*Product.full([turns, stretch, given.layer.weight], (outs, ins), whole).factors(), None)


def butterfly(ins: int, block: int, step: int) -> Array:
    """(in,) which input each place takes: in every group of 2ˢᵗᵉᵖ blocks the even halves, then the odd ones.

    >>> butterfly(8, 2, 1)
    array([0, 2, 1, 3, 4, 6, 5, 7])
    """
    half, halves = block // 2, 2 ** (step + 1)
    dealt = np.concatenate([np.arange(0, halves, 2), np.arange(1, halves, 2)])
    group = (dealt[:, None] * half + np.arange(half)).reshape(-1)
    found: Array = (np.arange(0, ins, halves * half)[:, None] + group).reshape(-1)
    return found


BOFT = Form(
    name="boft",
    words="BOFT",
    formula="`diag(s) W Rᵀ − W`",
    units="min(out, in)",
    make=make,
    peft={"boft_R": ("boft_R",), "boft_s": ("boft_s",)},
    must=("boft_R", "boft_s"),
    types={"BOFT": ""},
    bare=False,
    needs="base",
    scaled=False,
    full=True,
)
