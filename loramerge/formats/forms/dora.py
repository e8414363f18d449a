"""DoRA: the weight's length and direction apart; the pair turns the direction, a vector sets the lengths.

    ΔW = diag(m / ‖V‖) V − W, V = W + s · B @ A        m (out,), one length for each output

(arXiv:2402.09353; Linear layers of PEFT)
"""

from __future__ import annotations

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.formats.forms.checks import check_matrices, check_rank, misfit
from loramerge.formats.forms.factors import Product
from loramerge.formats.forms.form import Form, Given, Parts, Update
from loramerge.formats.forms.lora import PAIR


def make(parts: Parts, given: Given) -> Update:
    """The matrix: every output is stretched, so that nothing of low rank is left."""
    up, down, lengths, scale = parts["up"], parts["down"], parts["magnitude"], given.scale
    check_matrices(given.where, {"lora_B": up, "lora_A": down})
    if up.shape[1] != down.shape[0] or lengths.shape != up.shape[:1]:
        raise misfit(given.where, {DORA.call(part): tensor for part, tensor in parts.items()})
    check_rank(given, down.shape[0])

    def whole(up: Array, down: Array, lengths: Array, weight: Array) -> Array:
        turned = weight + scale * (up @ down)
        stretch = lengths / np.linalg.norm(turned, axis=1)
        changed: Array = stretch[:, None] * turned - weight
        return changed

    size = up.shape[0], down.shape[1]
    return Update(*Product.full([up, down, lengths, given.layer.weight], size, whole).factors(), None)


DORA = Form(
    name="dora",
    words="DoRA",
    formula="`diag(m / ‖V‖) V − W`, V = W + s·B·A",
    units="min(out, in)",
    make=make,
    peft={
        "down": PAIR["down"],
        "up": PAIR["up"],
        "magnitude": ("lora_magnitude_vector", "lora_magnitude_vector.weight"),
    },
    must=("down", "up", "magnitude"),
    types={"LORA": "lora_alpha"},
    setting="use_dora",
    bare=False,
    needs="base",
    scaled=False,
    full=True,
)
