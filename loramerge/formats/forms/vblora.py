"""VB-LoRA: factors put together of pieces, each a mixture of the k best vectors of one bank.

    A[i, piece t] = Σ softmax(top k of a[i, t]) bank        a (r, in / b, n), bank (n, b)
    B[piece t, j] = Σ softmax(top k of b[t, j]) bank        b (out / b, r, n)
    ΔW = B @ A

Logits are stored as they are; or only the indices of the best and their weights, without the last of these,
since they add up to 1. (arXiv:2405.15179)
"""

from __future__ import annotations

from math import prod

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.arrays.backend import Array
from loramerge.errors import SourceError
from loramerge.formats.forms.checks import misfit, missing, within
from loramerge.formats.forms.factors import made
from loramerge.formats.forms.form import Form, Given, Parts, Update

LOGITS = ("vblora_logits_A", "vblora_logits_B")
SIDES = {
    f"{name}{end}": (f"{name}{end}",) for name in LOGITS for end in ("", "_topk_indices", "_topk_weights")
}
BANK = "vblora_vector_bank"


def make(parts: Parts, given: Given) -> Update:
    """The pair of the mixtures."""
    bank = given.borrow(BANK)
    if len(bank.shape) != 2:
        raise misfit(given.where, {BANK: bank})
    a, b = (_mixtures(name, parts, bank, given) for name in LOGITS)
    (rank, inner), (outer, width), length = a.shape[:2], b.shape[:2], bank.shape[1]
    if rank != width:
        raise misfit(given.where, parts)

    def down(mixed: Array) -> Array:
        return mixed.reshape(rank, -1)

    def up(mixed: Array) -> Array:
        return mixed.swapaxes(1, 2).reshape(-1, rank)

    return Update(
        made([b], (outer * length, rank), up),
        made([a], (rank, inner * length), down),
        None,
    )


def _mixtures(name: str, parts: Parts, bank: Tensor, given: Given) -> Tensor:
    """(…, …, b) pieces of one side."""
    indices, weights = parts.get(f"{name}_topk_indices"), parts.get(f"{name}_topk_weights")
    if indices is None and weights is None:
        return _of_logits(name, parts, bank, given)
    for part, tensor in ((f"{name}_topk_indices", indices), (f"{name}_topk_weights", weights)):
        if tensor is None:
            raise missing(part, given.where)
    assert indices is not None
    assert weights is not None
    if (
        name in parts
        or len(indices.shape) != 3
        or weights.shape
        != (
            *indices.shape[:2],
            indices.shape[2] - 1,
        )
    ):
        raise misfit(given.where, parts)

    def mixed(indices: Array, weights: Array, bank: Array) -> Array:
        shares = np.concatenate([weights, 1 - weights.sum(axis=-1, keepdims=True)], axis=-1)
        return np.einsum("xyk,xykb->xyb", shares, bank[within(indices, len(bank), given.where)])

    return made(
        [indices, weights, bank],
        (*indices.shape[:2], bank.shape[1]),
        mixed,
        prod(indices.shape) * bank.shape[1],
    )


def _of_logits(name: str, parts: Parts, bank: Tensor, given: Given) -> Tensor:
    if name not in parts:
        raise missing(name, given.where)
    logits, best = parts[name], given.whole("topk")
    if len(logits.shape) != 3 or logits.shape[2] != bank.shape[0]:
        raise misfit(given.where, {name: logits, BANK: bank})
    if not 1 <= best <= bank.shape[0]:
        raise SourceError(f"topk {best} of {given.where} is not a number of its {bank.shape[0]} vectors.")

    def mixed(logits: Array, bank: Array) -> Array:
        indices = np.argsort(-logits, axis=-1, kind="stable")[..., :best]
        chosen = np.take_along_axis(logits, indices, axis=-1)
        shares = np.exp(chosen - chosen.max(axis=-1, keepdims=True))
        return np.einsum("xyk,xykb->xyb", shares / shares.sum(axis=-1, keepdims=True), bank[indices])

    return made(
        [logits, bank],
        (*logits.shape[:2], bank.shape[1]),
        mixed,
        prod(logits.shape[:2]) * best * bank.shape[1],
    )


VBLORA = Form(
    name="vblora",
    words="VB-LoRA",
    formula="`B @ A`, of mixtures of bank vectors",
    units="r",
    make=make,
    peft=SIDES,
    whole=tuple(f"{name}_topk_indices" for name in LOGITS),
    shared={BANK: (BANK,)},
    types={"VBLORA": ""},
    bare=False,
    scaled=False,
)
