"""SHiRA: some entries of the weight change, and the others do not.

    ΔW[i, j] = v at the stored (i, j), zero elsewhere        v (n,), indices (2, n)

(arXiv:2406.13175)
"""

from __future__ import annotations

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.formats.forms.checks import check_vectors, misfit, within
from loramerge.formats.forms.factors import Product
from loramerge.formats.forms.form import Form, Given, Parts, Update


def make(parts: Parts, given: Given) -> Update:
    """The sparse matrix."""
    values, places, size = parts["shira_weight"], parts["shira_indices"], given.layer.size
    check_vectors(given.where, {"shira_weight": values})
    if places.shape != (2, *values.shape):
        raise misfit(given.where, parts)

    def whole(values: Array, places: Array) -> Array:
        matrix = np.zeros(size)
        rows, columns = (within(each, side, given.where) for each, side in zip(places, size, strict=True))
        np.add.at(matrix, (rows, columns), values)
        return matrix

    return Update(*Product.full([values, places], size, whole).factors(), None)


SHIRA = Form(
    name="shira",
    words="SHiRA",
    formula="values at stored places",
    units="min(out, in)",
    make=make,
    linear=(("shira_weight",),),
    peft={name: (name,) for name in ("shira_weight", "shira_indices")},
    must=("shira_weight", "shira_indices"),
    whole=("shira_indices",),
    types={"SHIRA": ""},
    bare=False,
    needs="sizes",
    scaled=False,
    full=True,
)
