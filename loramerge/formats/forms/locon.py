"""The pair of image tools, LoCon with convolutions; with a small kernel between its factors a Tucker product.

    ΔW = lora_up @ lora_down                            lora_down (r, in, *kernel), lora_up (out, r[, 1 …])
    ΔW[i, j, …] = Σ up[i, m] mid[m, n, …] down[n, j]    lora_mid (r, r, *kernel)

(LyCORIS, arXiv:2309.14859)
"""

from __future__ import annotations

from math import prod

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.arrays.backend import Array
from loramerge.formats.files.views import matrix
from loramerge.formats.forms.checks import check_dimensions, misfit
from loramerge.formats.forms.factors import made
from loramerge.formats.forms.form import Form, Given, Parts, Update


def make(parts: Parts, given: Given) -> Update:
    """The pair as it is stored, or with the core in `down`."""
    shown = {LOCON.call(part): tensor for part, tensor in parts.items()}
    check_dimensions(given.where, shown)
    up, down = parts["up"], parts["down"]
    if "mid" in parts:
        return _tucker(up, down, parts["mid"], given)
    rank, kernel = down.shape[0], down.shape[2:]
    odd = kernel and len(up.shape) not in (2, len(down.shape))
    if up.shape[1] != rank or set(up.shape[2:]) - {1} or odd:
        raise misfit(given.where, shown)
    return Update(matrix(up), matrix(down), rank, kernel)


def _tucker(up: Tensor, down: Tensor, mid: Tensor, given: Given) -> Update:
    if mid.shape[:2] != (up.shape[1], down.shape[0]) or {*up.shape[2:], *down.shape[2:]} - {1}:
        raise misfit(given.where, {"lora_up": up, "lora_mid": mid, "lora_down": down})
    rank, ins, kernel = mid.shape[0], down.shape[1], mid.shape[2:]

    def core(mid: Array, down: Array) -> Array:
        return np.einsum("mn...,nj->mj...", mid, down.reshape(down.shape[:2])).reshape(rank, -1)

    return Update(matrix(up), made([mid, down], (rank, ins * prod(kernel)), core), down.shape[0], kernel)


LOCON = Form(
    name="locon",
    words="LoRA",
    formula="`up @ down`, with `lora_mid` `up @ (mid · down)`",
    units="r",
    make=make,
    image={
        "down": (
            *("lora_down.weight", "lora_A.weight", "lora_A", "lora_down.default.weight"),
            *("lora_A.default.weight", "lora.down.weight", "lora_linear_layer.down.weight"),
        ),
        "up": (
            *("lora_up.weight", "lora_B.weight", "lora_B", "lora_up.default.weight"),
            *("lora_B.default.weight", "lora.up.weight", "lora_linear_layer.up.weight"),
        ),
        "mid": ("lora_mid.weight",),
    },
    must=("down", "up"),
    told=False,
)
