"""PEFT's pair: a linear layer, a convolution of one to three dimensions, also in groups.

    ΔW = lora_B @ lora_A        lora_A (r, in, *kernel), lora_B (out, r, 1 …)

In groups each sees its part of the rank: lora_B (out, r / groups, 1 …).
"""

from __future__ import annotations

from loramerge.adapters.adapter import Tensor
from loramerge.errors import IncompatibleError
from loramerge.formats.files.views import matrix
from loramerge.formats.forms.checks import check_blocks, unlike
from loramerge.formats.forms.form import Form, Given, Parts, Update


def make(parts: Parts, given: Given) -> Update:
    """The pair as two matrices; those of a convolution in groups hold all groups."""
    up, down = parts["up"], parts["down"]
    if len(down.shape) == 2 and up.shape[2:] == (1,):
        return _merged_of_one(up, down, given)
    if len(up.shape) != len(down.shape) or not 2 <= len(up.shape) <= 5:
        raise unlike(given.where, up, down)
    groups, kernel = _groups(up, down, given.where), down.shape[2:]
    return Update(matrix(up), matrix(down), down.shape[0], kernel, "conv" if kernel else "linear", groups)


def _merged_of_one(up: Tensor, down: Tensor, given: Given) -> Update:
    """The layout of MergedLinear, without the setting that says which parts of the outputs it adapts."""
    if up.shape[1] != down.shape[0]:
        raise IncompatibleError(
            f"The pair of {given.where} adapts equal parts of the outputs (loralib's MergedLinear, PEFT's "
            "oldest fused layout). Which parts, only enable_lora says: load the folder with its "
            'adapter_config.json, or put {"r": …, "lora_alpha": …, "enable_lora": [true, false, true]} into '
            "a .json file of its name beside it."
        )
    return Update(matrix(up), down, up.shape[1])


def _groups(up: Tensor, down: Tensor, where: str) -> int:
    """How many groups a convolution has: `up` then sees only its group's part of the rank."""
    groups, rest = divmod(down.shape[0], up.shape[1])
    if rest or not groups or not _fits(up, groups):
        raise unlike(where, up, down)
    check_blocks(groups, where)
    return groups


def _fits(up: Tensor, groups: int) -> bool:
    if len(up.shape) == 2:
        return groups == 1
    return up.shape[0] % groups == 0 and set(up.shape[2:]) == {1}


GATE = "topk_bias"  # FlyLoRA's own, which has no part in ΔW
PAIR = {"down": ("lora_A.weight",), "up": ("lora_B.weight",), "bias": ("lora_B.bias",)}

LORA = Form(
    name="lora",
    words="LoRA",
    formula="`B @ A`",
    units="r",
    make=make,
    linear=(("up", "bias", GATE), ("down", "bias")),
    peft=PAIR,
    must=("down", "up"),
    types={"LORA": "lora_alpha"},
    told=False,
)
