"""Uni-LoRA: every entry of all factors is an entry of one vector, which many share.

    A = θ[i_A] · s_A, B = θ[i_B] · s_B, ΔW = B @ A        θ (d,), i_A, s_A (r, in), i_B, s_B (out, r)

Indices and their scales are read where the file keeps them. Else PEFT deals them out in the order of the
model's layers, which no file tells. (arXiv:2506.00799)
"""

from __future__ import annotations

from loramerge.adapters.adapter import Tensor
from loramerge.arrays.backend import Array
from loramerge.formats.forms.checks import check_matrices, check_vectors, misfit, within
from loramerge.formats.forms.factors import made
from loramerge.formats.forms.form import Form, Given, Parts, Update

THETA = "unilora_theta_d"


def make(parts: Parts, given: Given) -> Update:
    """Both factors gathered."""
    theta = given.borrow(THETA)
    check_vectors(given.where, {THETA: theta})
    check_matrices(given.where, parts)
    a, b = (_gathered(theta, side, parts, given) for side in "AB")
    if a.shape[0] != b.shape[1]:
        raise misfit(given.where, parts)
    return Update(b, a, None)


def _gathered(theta: Tensor, side: str, parts: Parts, given: Given) -> Tensor:
    indices, scales = parts[f"unilora_indices_{side}"], parts[f"unilora_scales_{side}"]
    if indices.shape != scales.shape:
        raise misfit(given.where, parts)

    def gather(theta: Array, indices: Array, scales: Array) -> Array:
        return theta[within(indices, len(theta), given.where)] * scales

    outs, ins = indices.shape
    return made([theta, indices, scales], (outs, ins), gather)


NAMES = tuple(f"unilora_{what}_{side}" for side in "AB" for what in ("indices", "scales"))
UNILORA = Form(
    name="unilora",
    words="Uni-LoRA",
    formula="`B @ A`, gathered from one vector",
    units="r",
    make=make,
    peft={name: (name,) for name in NAMES},
    must=NAMES,
    whole=("unilora_indices_A", "unilora_indices_B"),
    shared={THETA: (THETA,)},
    types={"UNILORA": ""},
    bare=False,
    scaled=False,
)
