"""MergedLinear of loralib and PEFT 0.2: k of n equal parts of the outputs, each with an r of its own.

    ΔW[part g] = B[part g] @ A[r·g : r·(g+1)], zero elsewhere        A (r·k, in), B (out·k/n, r[, 1])

Which parts these are, the setting enable_lora says.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.arrays.backend import Array
from loramerge.errors import SourceError
from loramerge.formats.files.views import View, matrix
from loramerge.formats.forms import lora
from loramerge.formats.forms.form import Form, Given, Parts, Update


def make(parts: Parts, given: Given) -> Update:
    """One pair of rank r·k, whose `up` has each part of the outputs beside zeros."""
    enabled, up, down = _enabled(given), parts["up"], parts["down"]
    if sum(enabled) > 1 and up.shape[1:2] == down.shape[:1]:  # factors of several parts do not share a rank
        return lora.make(parts, given)
    on, rank = [part for part, each in enumerate(enabled) if each], given.rank or 1
    if not _fits(up, down, rank, len(on)):
        raise SourceError(
            f"lora_B {list(up.shape)} and lora_A {list(down.shape)} of {given.where} do not fit enable_lora "
            f"{enabled} and r {rank}."
        )
    stored = up.shape[0] // len(on)
    shape = (stored * len(enabled), rank * len(on))

    def spread(up: Array) -> Array:
        wide = np.zeros(shape, up.dtype)
        for block, part in enumerate(on):
            rows = slice(part * stored, (part + 1) * stored)
            wide[rows, block * rank : (block + 1) * rank] = up[block * stored : (block + 1) * stored]
        return wide

    return Update(View((matrix(up),), shape, up.dtype, spread), down, rank)


def _fits(up: Tensor, down: Tensor, rank: int, parts: int) -> bool:
    if up.shape[1:] not in ((rank,), (rank, 1)) or up.shape[0] % parts:
        return False
    return len(down.shape) == 2 and down.shape[0] == rank * parts


def _enabled(given: Given) -> list[bool]:
    enabled: Any = given.config["enable_lora"]
    if not isinstance(enabled, list) or not all(isinstance(on, bool) for on in enabled) or not any(enabled):
        raise SourceError(f"enable_lora of {given.where} must be a list of true and false.")
    return enabled


MERGED = Form(
    name="merged",
    words="MergedLinear",
    formula="`B[part g] @ A[r·g : r·(g+1)]` in part g of the outputs",
    units="r·k",
    make=make,
    peft=lora.PAIR,
    must=("down", "up"),
    types={"LORA": "lora_alpha"},
    linear=(("up",), ("down",)),
    setting="enable_lora",
    told=False,
)
