"""Full: the whole matrix.

    ΔW = diff = diff @ 1, or 1 @ diff        diff (out, in, *kernel)

It has no alpha.
"""

from __future__ import annotations

from math import prod

from loramerge.formats.forms.checks import check_dimensions
from loramerge.formats.forms.factors import Product, split
from loramerge.formats.forms.form import Form, Given, Parts, Update


def make(parts: Parts, given: Given) -> Update:
    """The matrix beside the identity of its shorter side."""
    check_dimensions(given.where, parts)
    tensor = parts["diff"]
    size = tensor.shape[0], prod(tensor.shape[1:])
    product = Product(
        [tensor],
        size,
        min(size),
        lambda array: split(array.reshape(size)),
        lambda array: array.reshape(size),
    )
    return Update(*product.factors(), None, tensor.shape[2:])


FULL = Form(
    name="full",
    words="full `.diff`",
    formula="the matrix `diff`",
    units="min(out, in)",
    make=make,
    image={"diff": ("diff",)},
    must=("diff",),
    full=True,
)
