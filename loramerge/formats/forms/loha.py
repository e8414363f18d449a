"""LoHa: the entrywise product of two pairs, which is a pair itself.

    ΔW = (a₁ b₁) ∘ (a₂ b₂) = khatri_rao(a₁, a₂) @ face_split(b₁, b₂)        a (out, r), b (r, in)

Of a convolution with cores t (r, r, *kernel) each side is a Tucker product, whose `a` is (r, out). Without
them PEFT keeps the kernel in the columns. (FedPara, arXiv:2108.06098)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.arrays.backend import Array
from loramerge.formats.forms.checks import check_dimensions, misfit, missing
from loramerge.formats.forms.factors import Pair, Product, half
from loramerge.formats.forms.form import Form, Given, Parts, Update


def make(parts: Parts, given: Given) -> Update:
    """Its Khatri-Rao pair."""
    check_dimensions(given.where, parts)
    cores = [part for part in CORES if part not in parts]
    if len(cores) == 1:
        raise missing(cores[0], given.where)
    one, two = (_side(parts, i, given) for i in (1, 2))
    if (one.size, one.kernel) != (two.size, two.kernel):
        raise misfit(given.where, parts)
    cut = len(one.tensors)

    def pair(*arrays: Array) -> Pair:
        (a1, b1), (a2, b2) = half(*arrays[:cut]), half(*arrays[cut:])
        up = np.einsum("oi,oj->oij", a1, a2).reshape(len(a1), -1)  # (out, r1 r2)
        return up, np.einsum("in,jn->ijn", b1, b2).reshape(-1, b1.shape[1])  # (r1 r2, in)

    def whole(*arrays: Array) -> Array:
        (a1, b1), (a2, b2) = half(*arrays[:cut]), half(*arrays[cut:])
        return (a1 @ b1) * (a2 @ b2)

    product = Product([*one.tensors, *two.tensors], one.size, one.units * two.units, pair, whole)
    return Update(*product.factors(), parts["hada_w1_b"].shape[0], one.kernel)


@dataclass(frozen=True, eq=False, slots=True)
class Side:
    """One of the two products."""

    tensors: list[Tensor]
    size: tuple[int, int]
    units: int
    kernel: tuple[int, ...]


def _side(parts: Parts, i: int, given: Given) -> Side:
    a, b, t = parts[f"hada_w{i}_a"], parts[f"hada_w{i}_b"], parts.get(f"hada_t{i}")
    if t is None:
        if len(a.shape) != 2 or a.shape[1] != b.shape[0]:
            raise misfit(given.where, parts)
        return Side([a, b], (a.shape[0], prod(b.shape[1:])), a.shape[1], b.shape[2:])
    if len(a.shape) != 2 or len(b.shape) != 2 or t.shape[:2] != (a.shape[0], b.shape[0]):
        raise misfit(given.where, parts)
    return Side([a, b, t], (a.shape[1], b.shape[1] * prod(t.shape[2:])), a.shape[0], t.shape[2:])


FACTORS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
CORES = ("hada_t1", "hada_t2")
KEYS = {part: (part,) for part in (*FACTORS, *CORES)}

LOHA = Form(
    name="loha",
    words="LoHa",
    formula="`(a₁b₁) ∘ (a₂b₂)`",
    units="r₁·r₂",
    make=make,
    peft=KEYS,
    image=KEYS,
    must=FACTORS,
    types={"LOHA": "alpha"},
    linear=tuple((part,) for part in KEYS),
)
