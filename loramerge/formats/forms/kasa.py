"""KaSA: the weakest singular parts of the base are cut away, and a pair with singular values comes instead.

    ΔW = s · B diag(d) A − W Z Zᵀ        d (r,), Z (in, c) the right singular vectors of what is cut

PEFT, which writes `kasa_config`, cuts the r weakest of min(out, in). The authors' own code, which does not,
keeps the first in − r of them, so that it cuts fewer of a layer with fewer outputs than inputs.
(arXiv:2412.06071)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.arrays.linalg import svd
from loramerge.errors import SourceError
from loramerge.formats.forms.checks import check_matrices, check_rank, misfit
from loramerge.formats.forms.factors import Pair, Product
from loramerge.formats.forms.form import Form, Given, Parts, Update
from loramerge.formats.forms.lora import PAIR


def make(parts: Parts, given: Given) -> Update:
    """One pair of both, of rank r + c ≤ 2r."""
    up, down, middle, scale = parts["up"], parts["down"], parts["diag"], given.scale
    check_matrices(given.where, {"lora_B": up, "lora_A": down})
    rank, (outs, ins) = down.shape[0], given.layer.size
    if up.shape != (outs, rank) or down.shape[1] != ins or middle.shape != (rank,):
        raise misfit(given.where, {KASA.call(part): tensor for part, tensor in parts.items()})
    check_rank(given, rank)
    kept = (min(outs, ins) if KASA.fits(given.config) else ins) - rank
    if kept < 1:
        raise SourceError(f"{given.where} is KaSA of rank {rank}, which leaves nothing of its layer.")
    cut = max(0, min(outs, ins) - kept)

    def pair(up: Array, down: Array, middle: Array, weight: Array) -> Pair:
        weak = svd(weight, full_matrices=False)[2][min(outs, ins) - cut :]
        left = np.concatenate([scale * up * middle, -(weight @ weak.T)], axis=1)
        return left, np.concatenate([down, weak])

    def whole(*arrays: Array) -> Array:
        left, right = pair(*arrays)
        return left @ right

    tensors = [up, down, middle, given.layer.weight]
    return Update(*Product(tensors, (outs, ins), rank + cut, pair, whole, outs * ins).factors(), None)


KASA = Form(
    name="kasa",
    words="KaSA",
    formula="`s·B diag(d) A` less what is cut from W",
    units="2r",
    make=make,
    peft={"down": PAIR["down"], "up": PAIR["up"], "diag": ("lora_diag",)},
    must=("down", "up", "diag"),
    types={"LORA": "lora_alpha"},
    setting="kasa_config",
    bare=False,
    needs="base",
    scaled=False,
)
AUTHORS_KASA = replace(KASA, name="authors_kasa", setting="")
