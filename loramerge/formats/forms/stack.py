"""Pairs stacked in a fused module: their outputs follow one another.

    ΔW = [up.0 @ down.0; up.1 @ down.1; …]

It is one pair of rank Σ r, whose `up` has blocks along the diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array
from loramerge.errors import SourceError
from loramerge.formats.files.views import View
from loramerge.formats.forms import locon
from loramerge.formats.forms.checks import missing
from loramerge.formats.forms.form import Form, Given, Parts, Update

MOST = 16  # pairs in one module


def make(parts: Parts, given: Given) -> Update:
    """The one pair that the stacked ones are; all of these share a rank, and so an alpha."""
    numbers = sorted({int(part.rpartition(".")[2]) for part in parts})
    if len(numbers) > MOST:
        raise SourceError(f"{given.where} is stacked of {len(numbers)} pairs, and {MOST} is the limit.")
    for part in (f"{side}.{number}" for number in numbers for side in ("down", "up")):
        if part not in parts:
            raise missing(STACKED.call(part), given.where)
    each = [
        locon.make({"up": parts[f"up.{n}"], "down": parts[f"down.{n}"]}, Given(f"down.{n} of {given.where}"))
        for n in numbers
    ]
    if len({(one.rank, one.down.shape) for one in each}) > 1:
        raise SourceError(f"The stacked pairs of {given.where} do not share a rank.")
    up, down = stacked([one.up for one in each], [one.down for one in each])
    return Update(up, down, each[0].rank)


def stacked(ups: Sequence[Tensor], downs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pairs whose outputs follow one another as one pair: up in blocks along the diagonal."""
    rank, outs = sum(t.shape[0] for t in downs), sum(t.shape[0] for t in ups)
    kind = dtypes.widest([t.dtype for t in (*ups, *downs)])

    def up(*arrays: Array) -> Array:
        whole, row, column = np.zeros((outs, rank), dtypes.FLOATS[kind]), 0, 0
        for array in arrays:
            height, width = array.shape
            whole[row : row + height, column : column + width] = array
            row, column = row + height, column + width
        return whole

    def down(*arrays: Array) -> Array:
        return np.concatenate([array.astype(dtypes.FLOATS[kind]) for array in arrays])

    shape = rank, downs[0].shape[1]
    return View(tuple(ups), (outs, rank), kind, up), View(tuple(downs), shape, kind, down)


STACKED = Form(
    name="stacked",
    words="stacked pairs",
    formula="`up.0 @ down.0` above `up.1 @ down.1` …",
    units="Σ r",
    make=make,
    image={"down.#": ("lora_down.#.weight",), "up.#": ("lora_up.#.weight",)},
    told=False,
)
