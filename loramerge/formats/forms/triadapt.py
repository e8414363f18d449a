"""TriAdaptLoRA: pairs that were added one after another, with a square matrix between that grew with them.

    ΔW = α / (R + 1e-5) · [B_0 B_1 …] @ (rows + columns) @ [A_0; A_1; …]        R = Σ of their ranks
    rows: C_row.i (r_i, r_0 + … + r_i) below each other, columns: C_col.i (r_0 + … + r_i, r_i) side by side

Each is filled up with zeros. Without an alpha above 0 it is the rank that training began with.
(arXiv:2501.08008)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.arrays.backend import Array
from loramerge.formats.forms.checks import check_matrices, misfit, missing
from loramerge.formats.forms.factors import made
from loramerge.formats.forms.form import Form, Given, Parts, Update

SIDES = {"tri_A": "lora_A", "tri_B": "lora_B", "tri_row": "lora_C_row", "tri_col": "lora_C_col"}
NEAR = 1e-5  # that its authors add to the rank


def make(parts: Parts, given: Given) -> Update:
    """One pair of all, with the matrix between in `up`."""
    check_matrices(given.where, shown := {TRIADAPT.call(part): tensor for part, tensor in parts.items()})
    count = 1 + max(int(part.rpartition(".")[2]) for part in parts)
    downs, ups, rows, columns = (_listed(side, count, parts, given) for side in SIDES)
    ranks = [tensor.shape[0] for tensor in downs]
    ends = np.cumsum(ranks).tolist()
    (outs, _), (_, ins), rank = ups[0].shape, downs[0].shape, ends[-1]
    fits = [
        (down.shape, up.shape, row.shape, column.shape) == ((r, ins), (outs, r), (r, end), (end, r))
        for down, up, row, column, r, end in zip(downs, ups, rows, columns, ranks, ends, strict=True)
    ]
    if not all(fits):
        raise misfit(given.where, shown)
    alpha = given.number("lora_alpha", 0.0)
    scale = (alpha if alpha > 0 else given.whole("init_rank", 1)) / (rank + NEAR)

    def up(*arrays: Array) -> Array:
        core = np.zeros((rank, rank))
        lower, upper = arrays[count : 2 * count], arrays[2 * count :]
        for row, column, r, end in zip(lower, upper, ranks, ends, strict=True):
            core[end - r : end, :end] += row
            core[:end, end - r : end] += column
        whole: Array = scale * (np.concatenate(arrays[:count], axis=1) @ core)
        return whole

    def down(*arrays: Array) -> Array:
        return np.concatenate(arrays)

    left = made([*ups, *rows, *columns], (outs, rank), up)
    return Update(left, made(downs, (rank, ins), down), None)


def _listed(side: str, count: int, parts: Parts, given: Given) -> Sequence[Tensor]:
    """The tensors of a side, in order.

    Raises:
        SourceError: one is missing.
    """
    for part in (f"{side}.{number}" for number in range(count)):
        if part not in parts:
            raise missing(TRIADAPT.call(part), given.where)
    return [parts[f"{side}.{number}"] for number in range(count)]


TRIADAPT = Form(
    name="triadapt",
    words="TriAdaptLoRA",
    formula="`α / R · B @ (C_row + C_col) @ A`, of pairs added one by one",
    units="Σ r",
    make=make,
    peft={f"{side}.#": (f"{end}.#",) for side, end in SIDES.items()},
    types={"TRIADAPTLORA": ""},
    linear=(("tri_A.#",), ("tri_B.#",), ("tri_row.#", "tri_col.#")),
    bare=False,
    scaled=False,
)
