"""RandLoRA: a sum of many random pairs, each with its own scalings, which together have full rank.

    ΔW = α/r · Σ_j B[:, j ÷ r, j mod r] ⊗ λ[j ÷ n, j mod n] A[j ÷ n, 0] γ[j mod n]        j < r·n
    of the larger side as outputs, else transposed        λ (r, n), γ (n, min), A (r, 1, ≥ min)
                                                          B (≥ max, ≥ n, r), n = ⌈min / r⌉

The two orders of the index j are those of PEFT. Where they are not stored, they
cannot be drawn again. (arXiv:2502.00987)
"""

from __future__ import annotations

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.arrays.backend import Array
from loramerge.errors import IncompatibleError
from loramerge.formats.forms.checks import check_matrices, misfit
from loramerge.formats.forms.factors import Product
from loramerge.formats.forms.form import Form, Given, Parts, Update


def make(parts: Parts, given: Given) -> Update:
    """The matrix."""
    weights, scales = parts["randlora_lambda"], parts["randlora_gamma"]
    check_matrices(given.where, {"randlora_lambda": weights, "randlora_gamma": scales})
    size = given.layer.size
    rank, small, large = weights.shape[0], min(size), max(size)
    bases = -(-small // rank)
    a, b = _frame(parts, given)
    if weights.shape != (rank, bases) or scales.shape != (bases, small):
        raise misfit(given.where, parts)
    shown = {"randlora_A": a, "randlora_B": b}
    if len(a.shape) != 3 or len(b.shape) != 3 or (a.shape[:2], b.shape[2]) != ((rank, 1), rank):
        raise misfit(given.where, shown)
    if a.shape[2] < small or b.shape[0] < large or b.shape[1] < bases:
        raise misfit(given.where, shown)
    turned = small != size[1]  # PEFT's own order of the two sides

    def whole(weights: Array, scales: Array, a: Array, b: Array) -> Array:
        under = (weights[:, :, None] * a[:, :, :small] * scales[None]).reshape(-1, small)  # index k·n + b
        over = b[:large, :bases].reshape(large, -1)  # index b·r + k
        matrix = over @ under
        return np.ascontiguousarray(matrix.T) if turned else matrix

    return Update(*Product.full([weights, scales, a, b], size, whole).factors(), rank)


def _frame(parts: Parts, given: Given) -> tuple[Tensor, Tensor]:
    """A and B: the module's own copies, or those of all."""
    if given.config.get("save_projection") is False:
        raise IncompatibleError(
            f"{given.where} is RandLoRA without its bases, which PEFT draws in a number type that depends on "
            "the machine: save it with save_projection=True."
        )
    a, b = (parts.get(name) or given.borrow(name) for name in COPIES)
    return a, b


COPIES = ("randlora_A", "randlora_B")
NAMES = ("randlora_lambda", "randlora_gamma")
RANDLORA = Form(
    name="randlora",
    words="RandLoRA",
    formula="`Σ B_b ⊗ λ A γ_b`, a sum of random pairs",
    units="min(out, in)",
    make=make,
    linear=(("randlora_lambda",), ("randlora_gamma",)),
    peft={name: (name,) for name in (*NAMES, *COPIES)},
    must=NAMES,
    shared={name: (name,) for name in COPIES},
    types={"RANDLORA": "randlora_alpha"},
    bare=False,
    needs="sizes",
    full=True,
)
