"""DeLoRA: a pair of units of length 1, with one strength, and the norms of the base's columns.

    ΔW = B @ diag(λ / (r ‖aⱼ‖ ‖bⱼ‖)) @ A @ diag(w)        A (r, in), B (out, r), λ (1,), w (in,)

Norms below 1e-4 count as 1e-4. (arXiv:2503.18225)
"""

from __future__ import annotations

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.formats.forms.checks import check_matrices, misfit
from loramerge.formats.forms.factors import made
from loramerge.formats.forms.form import Form, Given, Parts, Update

LEAST = 1e-4


def make(parts: Parts, given: Given) -> Update:
    """Both factors with their norms taken out, λ in `up` and w in `down`."""
    a, b = parts["delora_A"], parts["delora_B"]
    strength, norms = parts["delora_lambda"], parts["delora_w_norm"]
    check_matrices(given.where, {"delora_A": a, "delora_B": b})
    rank, ins = a.shape
    if b.shape[1] != rank or strength.shape not in ((), (1,)) or norms.shape != (ins,):
        raise misfit(given.where, parts)

    def up(b: Array, strength: Array) -> Array:
        return b * (strength.reshape(()) / rank / np.maximum(np.linalg.norm(b, axis=0), LEAST))

    def down(a: Array, norms: Array) -> Array:
        return a / np.maximum(np.linalg.norm(a, axis=1), LEAST)[:, None] * norms

    return Update(made([b, strength], b.shape, up), made([a, norms], a.shape, down), None)


NAMES = ("delora_A", "delora_B", "delora_lambda", "delora_w_norm")
DELORA = Form(
    name="delora",
    words="DeLoRA",
    formula="`B @ diag(λ / (r‖a‖‖b‖)) @ A @ diag(w)`",
    units="r",
    make=make,
    peft={name: (name,) for name in NAMES},
    must=NAMES,
    types={"DELORA": ""},
    linear=(("delora_lambda",), ("delora_w_norm",)),
    bare=False,
    scaled=False,
)
