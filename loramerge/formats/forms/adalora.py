"""AdaLoRA: a pair with singular values between its factors, pruned while it is trained.

    ΔW = lora_B @ (lora_A · lora_E)        lora_A (r, in), lora_B (out, r), lora_E (r, 1)

Its scale is alpha over the rank that training began with, which only its config tells. (arXiv:2303.10512)
"""

from __future__ import annotations

from loramerge.adapters.adapter import Tensor
from loramerge.arrays import dtypes
from loramerge.errors import SourceError
from loramerge.formats.files.views import View
from loramerge.formats.forms.checks import check_full
from loramerge.formats.forms.form import Form, Given, Parts, Update


def make(parts: Parts, given: Given) -> Update | None:
    """The pair with the values in `down`; a module pruned to rank 0 has none."""
    up, down, sigma = (parts[f"svd_{side}"] for side in "BAE")
    if up.shape[1:] != down.shape[:1] or sigma.shape != (*down.shape[:1], 1) or len(down.shape) != 2:
        raise SourceError(f"The three factors of AdaLoRA of {given.where} do not share a rank.")
    if not down.shape[0]:
        return None
    check_full(given.where, up, down)
    return Update(up, _scaled(down, sigma), down.shape[0])


def _scaled(down: Tensor, sigma: Tensor) -> Tensor:
    kind = dtypes.widest([down.dtype, sigma.dtype, "F32"])
    wide = dtypes.FLOATS[kind]
    return View((down, sigma), down.shape, kind, lambda a, e: a.astype(wide) * e.astype(wide))


ADALORA = Form(
    name="adalora",
    words="AdaLoRA",
    formula="`B @ (A·E)`",
    units="r",
    make=make,
    peft={"svd_A": ("lora_A",), "svd_B": ("lora_B",), "svd_E": ("lora_E",)},
    must=("svd_A", "svd_B", "svd_E"),
    types={"ADALORA": "lora_alpha"},
    linear=(("svd_A",), ("svd_B",), ("svd_E",)),
    bare=False,
    told=False,
    empty=True,
)
