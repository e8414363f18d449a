"""TinyLoRA: a frozen pair, with a core between that a short vector mixes of frozen matrices.

    ΔW = B @ (Σ vᵢ Pᵢ) @ A        A (r, in), B (out, r), P (u, r, r), v (u,)

Modules may share a v; which one is whose, only the order of the model's layers tells, so several are refused.
(arXiv:2602.04118)
"""

from __future__ import annotations

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.errors import IncompatibleError
from loramerge.formats.forms.checks import check_matrices, misfit
from loramerge.formats.forms.factors import made
from loramerge.formats.forms.form import Form, Given, Parts, Update

VECTOR = "tinylora_v"


def make(parts: Parts, given: Given) -> Update:
    """The pair with the core in `up`."""
    if len(vectors := [name for name in given.shared if name.startswith(f"{VECTOR}.")]) > 1:
        raise IncompatibleError(
            f"{given.where} is TinyLoRA with {len(vectors)} vectors. Which of them is whose, only the "
            "order of the model's layers tells, and no file does: convert it with PEFT's save_as_lora."
        )
    vector = given.borrow(vectors[0] if vectors else f"{VECTOR}.0")
    a, b, p = (parts[f"tinylora_{name}"] for name in "ABP")
    check_matrices(given.where, {"tinylora_A": a, "tinylora_B": b})
    rank = a.shape[0]
    if b.shape[1] != rank or p.shape[1:] != (rank, rank) or vector.shape != p.shape[:1]:
        raise misfit(given.where, {**parts, VECTOR: vector})

    def up(b: Array, p: Array, vector: Array) -> Array:
        return b @ np.einsum("i,ijk->jk", vector, p)

    return Update(made([b, p, vector], (b.shape[0], rank), up), a, None)


TINYLORA = Form(
    name="tinylora",
    words="TinyLoRA",
    formula="`B @ (Σ vᵢPᵢ) @ A`",
    units="r",
    make=make,
    linear=(("tinylora_v",),),
    peft={f"tinylora_{name}": (f"tinylora_{name}",) for name in "ABP"},
    must=("tinylora_A", "tinylora_B", "tinylora_P"),
    shared={VECTOR: (VECTOR,)},
    types={"TINYLORA": ""},
    bare=False,
    scaled=False,
)
