"""LoFiT: the outputs of a few attention heads times a number each, and moved.

    ΔW[:, head h] = W[:, head h] diag(A_h), of the bias Σ_h W[:, head h] v_h        A_h, v_h (head size,)

W is the projection behind the heads. (arXiv:2406.01563)
"""

from __future__ import annotations

import numpy as np

from loramerge.adapters.adapter import Computed
from loramerge.arrays.backend import Array
from loramerge.formats.forms.checks import check_vectors, misfit
from loramerge.formats.forms.factors import made
from loramerge.formats.forms.form import Form, Given, Parts, Update


def make(parts: Parts, given: Given) -> Update:
    """The columns of the heads, and what picks their inputs."""
    check_vectors(given.where, parts)
    (outs, ins), size = given.layer.size, next(iter(parts.values())).shape[0]
    heads = sorted({int(part.rpartition(".")[2]) for part in parts})
    if (
        any(tensor.shape != (size,) for tensor in parts.values())
        or ins % size
        or (heads[-1] + 1) * size > ins
    ):
        raise misfit(given.where, parts)
    columns = np.concatenate([np.arange(head * size, (head + 1) * size) for head in heads])
    factors, moves = (
        [(h, parts[f"lofit_{k}.{h}"]) for h in heads if f"lofit_{k}.{h}" in parts] for k in "Av"
    )

    def spread(vectors: tuple[Array, ...], owners: list[int]) -> Array:
        whole = np.zeros(ins)
        for head, vector in zip(owners, vectors, strict=True):
            whole[head * size : (head + 1) * size] = vector
        return whole

    def up(weight: Array, *vectors: Array) -> Array:
        return (weight * spread(vectors, [head for head, _ in factors]))[:, columns]

    def down() -> Array:
        return (columns[:, None] == np.arange(ins)).astype(np.float32)

    def bias(weight: Array, *vectors: Array) -> Array:
        return weight @ spread(vectors, [head for head, _ in moves])

    left = made([given.layer.weight, *(t for _, t in factors)], (outs, len(columns)), up)
    moved = made([given.layer.weight, *(t for _, t in moves)], (outs,), bias) if moves else None
    return Update(left, Computed((len(columns), ins), down, "F32"), None, bias=moved)


LOFIT = Form(
    name="lofit",
    words="LoFiT",
    formula="`W[:, head] diag(A)`, and `W[:, head] v` in the bias",
    units="heads · head size",
    make=make,
    linear=(("lofit_A.#", "lofit_v.#"),),
    peft={"lofit_A.#": ("attn_A.#",), "lofit_v.#": ("attn_v.#",)},
    needs="base",
    scaled=False,
)
