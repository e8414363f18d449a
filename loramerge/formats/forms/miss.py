"""MiSS, before that Bone: blocks of the inputs share one matrix.

    std    ΔW = blockᵀ @ A, A[j, i] = 1 where i mod r = j        block (r, out)
    mini   the same, block (r, m) repeated out/m times
    bat    ΔW_ij = W_ij @ block_i + block_i, of r × r blocks of W        block (out/r, r, r)

(arXiv:2409.15371)
"""

from __future__ import annotations

import numpy as np

from loramerge.adapters.adapter import Computed
from loramerge.arrays.backend import Array
from loramerge.formats.forms.checks import check_rank, misfit
from loramerge.formats.forms.factors import Product, made
from loramerge.formats.forms.form import Form, Given, Parts, Update


def make(parts: Parts, given: Given) -> Update:
    """The pair whose `down` sums the inputs of each kind."""
    (outs, ins), block = given.layer.size, parts["miss_block"]
    if len(block.shape) != 2 or outs % block.shape[1]:
        raise misfit(given.where, parts)
    rank, times = block.shape[0], outs // block.shape[1]
    check_rank(given, rank)
    if times > 1 and given.config.get("init_weights") != "mini":
        raise misfit(given.where, parts)

    def up(block: Array) -> Array:
        return np.tile(block, times).T

    def sums() -> Array:
        return (np.arange(rank)[:, None] == np.arange(ins) % rank).astype(np.float32)

    return Update(made([block], (outs, rank), up), Computed((rank, ins), sums, "F32"), None)


def make_bat(parts: Parts, given: Given) -> Update:
    """The matrix: each r × r block of the weight times the block of its rows, which is added too."""
    (outs, ins), block = given.layer.size, parts["miss_block"]
    if len(block.shape) != 3 or block.shape[1] != block.shape[2]:
        raise misfit(given.where, parts)
    rank = block.shape[1]
    if outs != block.shape[0] * rank or ins % rank:
        raise misfit(given.where, parts)

    def whole(block: Array, weight: Array) -> Array:
        blocks = weight.reshape(outs // rank, rank, ins // rank, rank).transpose(2, 0, 1, 3)
        changed: Array = (blocks @ block + block).transpose(1, 2, 0, 3)
        return changed.reshape(outs, ins)

    return Update(*Product.full([block, given.layer.weight], (outs, ins), whole).factors(), None)


BLOCK = {"miss_block": ("miss_block", "bone_block")}
MISS = Form(
    name="miss",
    words="MiSS",
    formula="`blockᵀ @ A`, A[j, i] = 1 where i mod r = j",
    units="r",
    make=make,
    linear=(("miss_block",),),
    peft=BLOCK,
    must=("miss_block",),
    types={"MISS": "", "BONE": ""},
    bare=False,
    needs="sizes",
    scaled=False,
)
MISS_BAT = Form(
    name="miss_bat",
    words="MiSS (bat)",
    formula="`W_ij @ block_i + block_i`",
    units="min(out, in)",
    make=make_bat,
    linear=(("miss_block",),),
    peft=BLOCK,
    must=("miss_block",),
    types={"MISS": "", "BONE": ""},
    setting="init_weights",
    value="bat",
    bare=False,
    needs="base",
    scaled=False,
    full=True,
)
