"""C3A: blocks that are circulant, each given by one row.

    ΔW[m·b + p, n·b + q] = k[m, n, (q − p) mod b] / in        k (out/b, in/b, b)

(arXiv:2407.19342)
"""

from __future__ import annotations

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.formats.forms.checks import misfit
from loramerge.formats.forms.factors import Product
from loramerge.formats.forms.form import Form, Given, Parts, Update


def make(parts: Parts, given: Given) -> Update:
    """The matrix, which has full rank."""
    kernel = parts["c3a_kernel"]
    if len(kernel.shape) != 3:
        raise misfit(given.where, parts)
    tall, wide, block = kernel.shape
    turn = (np.arange(block)[None, :] - np.arange(block)[:, None]) % block  # (p, q)

    def whole(kernel: Array) -> Array:
        blocks = kernel[:, :, turn] / (wide * block)  # (m, n, p, q)
        return blocks.transpose(0, 2, 1, 3).reshape(tall * block, wide * block)

    return Update(*Product.full([kernel], (tall * block, wide * block), whole).factors(), None)


C3A = Form(
    name="c3a",
    words="C3A",
    formula="circulant blocks",
    units="min(out, in)",
    make=make,
    linear=(("c3a_kernel",),),
    peft={"c3a_kernel": ("c3a_kernel",)},
    must=("c3a_kernel",),
    types={"C3A": ""},
    bare=False,
    scaled=False,
    full=True,
)
