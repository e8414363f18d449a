"""WaveFT: a few coefficients of the wavelet transform of ΔW, one step of it.

    ΔW = s · Σ_k c_k w_k wᵀ_k, of rank n at most        c (n,), places drawn by a seed, w of the Haar wavelet

Without the transform the coefficients are entries of ΔW. Other wavelets than Haar's are refused.
(arXiv:2505.12532)
"""

from __future__ import annotations

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.errors import IncompatibleError, printable
from loramerge.formats.forms.checks import check_vectors
from loramerge.formats.forms.factors import Pair, Product
from loramerge.formats.forms.form import Form, Given, Parts, Update
from loramerge.formats.forms.fourierft import places

HAAR = ("db1", "haar")


def make(parts: Parts, given: Given) -> Update:
    """A unit for each coefficient; the matrix where that is no larger."""
    spectrum, (outs, ins) = parts["waveft_spectrum"], given.layer.size
    check_vectors(given.where, parts)
    scaling, rows, columns = given.number("scaling"), *places(spectrum.shape[0], given)
    wavelet = given.config.get("wavelet_family") if given.config.get("use_idwt", True) else None
    if wavelet not in (None, *HAAR):
        raise IncompatibleError(
            f"{given.where} is WaveFT with the wavelet {printable(wavelet)}; of them db1 is read. Convert it "
            "with PEFT's save_as_lora."
        )

    def pair(spectrum: Array) -> Pair:
        over, under = (rows, outs), (columns, ins)
        waves = (
            (_unit(*over), _unit(*under)) if wavelet is None else (_haar(*over, *under), _haar(*under, *over))
        )
        return (waves[0] * (scaling * spectrum)[:, None]).T, waves[1]

    def whole(spectrum: Array) -> Array:
        left, right = pair(spectrum)
        return left @ right

    product = Product([spectrum], (outs, ins), spectrum.shape[0], pair, whole)
    return Update(*product.factors(), None)


def _unit(places: Array, length: int) -> Array:
    """(n, length) rows that are 1 at a place."""
    return (places[:, None] == np.arange(length)).astype(np.float64)


def _haar(places: Array, length: int, others: Array, wide: int) -> Array:
    """(n, length) rows: what coefficients come to along one side, given their places on the other.

    In PEFT's order of the bands it is the half of the *other* side that tells sums of neighbours from
    differences. An odd length is padded by one, which is cut off again.
    """
    first = 2 * (places % _half(length))
    rows, each = np.zeros((len(places), 2 * _half(length))), np.arange(len(places))
    rows[each, first] = np.sqrt(0.5)
    rows[each, first + 1] = np.where(others < _half(wide), 1, -1) * np.sqrt(0.5)
    return rows[:, :length]


def _half(length: int) -> int:
    return (length + 1) // 2


WAVEFT = Form(
    name="waveft",
    words="WaveFT",
    formula="inverse Haar wavelets of a sparse spectrum",
    units="n",
    make=make,
    linear=(("waveft_spectrum",),),
    peft={"waveft_spectrum": ("waveft_spectrum",)},
    must=("waveft_spectrum",),
    types={"WAVEFT": ""},
    bare=False,
    needs="sizes",
    scaled=False,
)
