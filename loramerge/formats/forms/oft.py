"""OFT: the inputs of the weight turned, block by block.

    ΔW = W (Rᵀ − 1), R = diag(C(Q₁), C(Q₂), …)        Q_k skew-symmetric, stored by its upper triangle
    C(Q) = (1 − Q) (1 + Q)⁻¹, or the first terms of its series

(arXiv:2306.07280)
"""

from __future__ import annotations

from math import isqrt

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.formats.forms.checks import check_matrices, misfit
from loramerge.formats.forms.factors import Product
from loramerge.formats.forms.form import Form, Given, Parts, Update

TERMS = 5  # of the series, where the config does not say


def make(parts: Parts, given: Given) -> Update:
    """The matrix."""
    stored, (outs, ins) = parts["oft_R"], given.layer.size
    check_matrices(given.where, {"oft_R": stored})
    block = (1 + isqrt(1 + 8 * stored.shape[1])) // 2
    count, rest = divmod(ins, block)
    shared = given.config.get("block_share") is True
    if rest or block * (block - 1) // 2 != stored.shape[1] or stored.shape[0] != (1 if shared else count):
        raise misfit(given.where, {OFT.call(part): tensor for part, tensor in parts.items()})
    terms = given.whole("num_cayley_neumann_terms", TERMS) if given.config.get("use_cayley_neumann") else None
    most = given.number("eps") / np.sqrt(stored.shape[0]) if given.config.get("coft") is True else None

    def whole(stored: Array, weight: Array) -> Array:
        skew = skewed(stored, block)
        turns = _turns(skew if most is None else bounded(skew, most), terms)  # (count or 1, b, b)
        apart = weight.reshape(outs, count, block)
        changed: Array = np.matmul(apart.swapaxes(0, 1), turns.swapaxes(1, 2)).swapaxes(0, 1) - apart
        return changed.reshape(outs, ins)

    return Update(*Product.full([stored, given.layer.weight], (outs, ins), whole).factors(), None)


def skewed(stored: Array, block: int) -> Array:
    """(n, b, b) skew-symmetric matrices by their upper triangles."""
    found = np.zeros((len(stored), block, block))
    found[:, *np.triu_indices(block, 1)] = stored
    return found - found.swapaxes(1, 2)


def bounded(skew: Array, most: float) -> Array:
    """The same of a norm of at most that."""
    norms = np.linalg.norm(skew, axis=(1, 2), keepdims=True)
    return np.where(norms <= most, skew, most * skew / np.where(norms == 0, 1, norms))


def _turns(skew: Array, terms: int | None) -> Array:
    """What they turn by: Cayley's transform, or so many terms of its series."""
    return cayley(skew) if terms is None else series(skew, terms)


def series(skew: Array, terms: int) -> Array:
    """The first terms of Cayley's series as PEFT adds them: the last once; of three terms there are four.

    >>> float(series(np.eye(1)[None], 3)[0, 0, 0])
    6.0
    """
    total, power = np.broadcast_to(np.eye(skew.shape[1]), skew.shape).copy(), skew
    for term in range(1, max(terms, 4) if terms > 2 else terms):
        total += (1 if term > 2 and term >= terms - 1 else 2) * power
        power = power @ skew
    return total


def cayley(skew: Array) -> Array:
    """(1 − Q) (1 + Q)⁻¹ of each matrix.

    >>> cayley(np.zeros((1, 2, 2)))
    array([[[1., 0.],
            [0., 1.]]])
    """
    one = np.eye(skew.shape[1])
    return np.linalg.solve((one + skew).swapaxes(1, 2), (one - skew).swapaxes(1, 2)).swapaxes(1, 2)


OFT = Form(
    name="oft",
    words="OFT",
    formula="`W (Rᵀ − 1)`, R of turned blocks",
    units="min(out, in)",
    make=make,
    peft={"oft_R": ("oft_R.weight",)},
    must=("oft_R",),
    types={"OFT": ""},
    bare=False,
    needs="base",
    scaled=False,
    full=True,
)
