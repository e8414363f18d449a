"""HRA: the weight times a chain of Householder reflections.

    ΔW = W (H₁ H₂ … H_r − 1), H_k = 1 − 2 u_k uᵀ_k / ‖u_k‖²        u (in, r)
       = −(W U) @ T @ Uᵀ, with a triangular T, so of rank r

With `apply_GS` the u are made orthogonal first. (arXiv:2405.17484)
"""

from __future__ import annotations

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.formats.forms.checks import check_matrices, check_rank, misfit
from loramerge.formats.forms.factors import Pair, Product
from loramerge.formats.forms.form import Form, Given, Parts, Update


def make(parts: Parts, given: Given) -> Update:
    """The pair of the reflected weight, in compact form."""
    vectors, (outs, ins) = parts["hra_u"], given.layer.size
    check_matrices(given.where, parts)
    if vectors.shape[0] != ins:
        raise misfit(given.where, parts)
    rank = vectors.shape[1]
    check_rank(given, rank)
    orthogonal = given.config.get("apply_GS") is True

    def pair(vectors: Array, weight: Array) -> Pair:
        units = np.linalg.qr(vectors)[0] if orthogonal else vectors / np.linalg.norm(vectors, axis=0)
        return -(weight @ units) @ compact(units), units.T

    def whole(*arrays: Array) -> Array:
        left, right = pair(*arrays)
        return left @ right

    product = Product([vectors, given.layer.weight], (outs, ins), rank, pair, whole)
    return Update(*product.factors(), None)


def compact(units: Array) -> Array:
    """The T with H₁ … H_r = 1 − U T Uᵀ, for unit vectors in the columns of U.

    >>> compact(np.eye(3, 2)) + 0.0
    array([[2., 0.],
           [0., 2.]])
    """
    rank = units.shape[1]
    core = np.zeros((rank, rank))
    for k in range(rank):
        core[:k, k] = -2 * (core[:k, :k] @ (units[:, :k].T @ units[:, k]))
        core[k, k] = 2
    return core


HRA = Form(
    name="hra",
    words="HRA",
    formula="`−(W U) @ T @ Uᵀ`",
    units="r",
    make=make,
    peft={"hra_u": ("hra_u",)},
    must=("hra_u",),
    types={"HRA": ""},
    bare=False,
    needs="base",
    scaled=False,
)
