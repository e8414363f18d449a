"""FourierFT: a few coefficients of the two-dimensional Fourier transform of ΔW.

    ΔW = s · Re ifft2(S), S[u_k, v_k] = c_k        c (n,), places drawn by a seed
       = s / (out · in) · Σ_k c_k (cos_k cosᵀ_k − sin_k sinᵀ_k), of rank 2n at most

(arXiv:2405.03003)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.errors import IncompatibleError, SourceError
from loramerge.formats.forms.checks import check_vectors
from loramerge.formats.forms.draws import MOST, Draws
from loramerge.formats.forms.factors import Pair, Product
from loramerge.formats.forms.form import Form, Given, Parts, Update


def make(parts: Parts, given: Given) -> Update:
    """Two units for each coefficient; the matrix where that is no larger."""
    spectrum, (outs, ins) = parts["fourierft_spectrum"], given.layer.size
    check_vectors(given.where, parts)
    scaling, rows, columns = given.number("scaling"), *places(spectrum.shape[0], given)

    def waves(places: Array, length: int) -> Array:
        angles = 2 * np.pi * (np.outer(places, np.arange(length)) % length) / length  # (n, length)
        return np.concatenate([np.cos(angles), np.sin(angles)])

    def pair(spectrum: Array) -> Pair:
        weights = np.concatenate([spectrum, -spectrum]) * (scaling / (outs * ins))
        return (waves(rows, outs) * weights[:, None]).T, waves(columns, ins)

    def whole(spectrum: Array) -> Array:
        dense = np.zeros((outs, ins))
        dense[rows, columns] = spectrum
        return np.fft.ifft2(dense).real * scaling

    product = Product([spectrum], (outs, ins), 2 * spectrum.shape[0], pair, whole)
    return Update(*product.factors(), None)


def places(count: int, given: Given) -> tuple[Array, Array]:
    """Rows and columns of so many coefficients, as PEFT draws them.

    Raises:
        IncompatibleError: there are more than entries, or so many entries that torch draws otherwise.
    """
    outs, ins = given.layer.size
    _check_count(count, given)
    if count > outs * ins or outs * ins >= MOST:
        raise IncompatibleError(
            f"{given.where} has {count} coefficients for a layer of {outs}×{ins}, whose places are not drawn "
            "here: convert it with PEFT's save_as_lora."
        )
    found = Draws(given.whole("random_loc_seed")).first(count, outs * ins)
    return found // ins, found % ins


def _check_count(count: int, given: Given) -> None:
    """The config says how many coefficients there are, for all modules or for some by name.

    Raises:
        SourceError: it says another number.
    """
    patterns = given.config.get("n_frequency_pattern")
    others = patterns.values() if isinstance(patterns, Mapping) else ()
    shared = given.config.get("proportional_parameters")  # WaveFT's: more for larger layers
    if not shared and count not in (given.whole("n_frequency"), *others):
        raise SourceError(
            f"{given.where} has {count} coefficients, and its config says {given.whole('n_frequency')}: they "
            "do not belong together."
        )


FOURIERFT = Form(
    name="fourierft",
    words="FourierFT",
    formula="`s · Re ifft2(S)`",
    units="2n",
    make=make,
    linear=(("fourierft_spectrum",),),
    peft={"fourierft_spectrum": ("fourierft_spectrum",)},
    must=("fourierft_spectrum",),
    types={"FOURIERFT": ""},
    bare=False,
    needs="sizes",
    scaled=False,
)
