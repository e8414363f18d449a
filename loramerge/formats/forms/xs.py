"""LoRA-XS and LoRA-SB: a pair that stays as it was, with a small trained matrix between.

    ΔW = lora_B @ R @ lora_A        A (r, in), B (out, r), R (r, r)

LoRA-XS takes A and B from the base's singular vectors; LoRA-SB from its first gradients, with alpha = r.
(arXiv:2405.17604, arXiv:2411.19557)
"""

from __future__ import annotations

from loramerge.arrays.backend import Array
from loramerge.formats.forms.checks import check_matrices, misfit
from loramerge.formats.forms.factors import made
from loramerge.formats.forms.form import Form, Given, Parts, Update
from loramerge.formats.forms.lora import PAIR


def make(parts: Parts, given: Given) -> Update:
    """The pair with R in `up`."""
    up, core, down = parts["up"], parts["latent"], parts["down"]
    check_matrices(given.where, parts)
    rank = down.shape[0]
    if up.shape[1] != rank or core.shape != (rank, rank):
        raise misfit(given.where, {XS.call(part): tensor for part, tensor in parts.items()})

    def mixed(up: Array, core: Array) -> Array:
        return up @ core

    return Update(made([up, core], up.shape, mixed), down, rank)


XS = Form(
    name="xs",
    words="LoRA-XS",
    formula="`B @ R @ A`",
    units="r",
    make=make,
    linear=(("latent",), ("up",), ("down",)),
    peft={"down": PAIR["down"], "up": PAIR["up"], "latent": ("lora_latent_mapping.weight",)},
    must=("down", "up", "latent"),
    types={"LORA": "lora_alpha"},
)
