"""HiRA: the weight times a pair, entry by entry.

    ΔW = W ∘ (B @ A)        A (r, in), B (out, r)

(ICLR 2025)
"""

from __future__ import annotations

from loramerge.arrays.backend import Array
from loramerge.formats.forms.checks import check_matrices, misfit
from loramerge.formats.forms.factors import Product
from loramerge.formats.forms.form import Form, Given, Parts, Update


def make(parts: Parts, given: Given) -> Update:
    """The matrix."""
    down, up = parts["hira_A"], parts["hira_B"]
    check_matrices(given.where, parts)
    if up.shape[1] != down.shape[0]:
        raise misfit(given.where, parts)

    def whole(up: Array, down: Array, weight: Array) -> Array:
        changed: Array = weight * (up @ down)
        return changed

    size = up.shape[0], down.shape[1]
    return Update(*Product.full([up, down, given.layer.weight], size, whole).factors(), None)


HIRA = Form(
    name="hira",
    words="HiRA",
    formula="`W ∘ (B @ A)`",
    units="min(out, in)",
    make=make,
    peft={"hira_A": ("hira_A",), "hira_B": ("hira_B",)},
    must=("hira_A", "hira_B"),
    types={"HIRA": ""},
    linear=(("hira_A",), ("hira_B",)),
    bare=False,
    needs="base",
    scaled=False,
    full=True,
)
