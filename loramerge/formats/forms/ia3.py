"""IA³: every output, or every input, times a number of its own.

    ΔW = diag(l − 1) W, and of the bias (l − 1) ∘ b        l (out, 1)
    ΔW = W diag(l − 1)                                     l (1, in), of feed-forward layers

(arXiv:2205.05638)
"""

from __future__ import annotations

from loramerge.arrays.backend import Array
from loramerge.formats.forms.checks import misfit
from loramerge.formats.forms.factors import Product, made
from loramerge.formats.forms.form import Form, Given, Parts, Update


def make(parts: Parts, given: Given) -> Update:
    """The matrix, and what is added to the bias where outputs are multiplied."""
    factors, layer = parts["ia3_l"], given.layer
    outs, ins = layer.size
    if factors.shape not in ((outs, 1), (1, ins)):
        raise misfit(given.where, parts)

    def whole(factors: Array, weight: Array) -> Array:
        changed: Array = (factors - 1) * weight
        return changed

    up, down = Product.full([factors, layer.weight], (outs, ins), whole).factors()
    if layer.bias is None or factors.shape != (outs, 1):
        return Update(up, down, None)
    bias = made([factors, layer.bias], (outs,), lambda factors, bias: (factors[:, 0] - 1) * bias)
    return Update(up, down, None, bias=bias)


IA3 = Form(
    name="ia3",
    words="IA³",
    formula="`diag(l − 1) W`, or `W diag(l − 1)`",
    units="min(out, in)",
    make=make,
    peft={"ia3_l": ("ia3_l",)},
    must=("ia3_l",),
    types={"IA3": ""},
    linear=(("ia3_l",),),
    neutral=1.0,
    bare=False,
    needs="base",
    scaled=False,
    full=True,
)
