"""DoRA: the weight's length and direction apart; the pair turns the direction, a vector sets the lengths.

    ΔW = diag(m / ‖V‖) V − W, V = W + s · B @ A        m (out,), one length for each output
    LyCORIS has it with any of its forms as B @ A, and may have one for each input: V diag(m / ‖V‖) − W

A convolution's outputs are the rows of its matrix, an embedding's the columns of its table.
(arXiv:2402.09353)
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from loramerge.adapters.adapter import Slot, Tensor
from loramerge.arrays.backend import Array
from loramerge.errors import SourceError
from loramerge.formats.files.views import transposed, widened
from loramerge.formats.forms import embedding, lora
from loramerge.formats.forms.checks import check_float, check_full, check_rank, misfit
from loramerge.formats.forms.factors import Product
from loramerge.formats.forms.form import Form, Given, Parts, Update
from loramerge.formats.forms.parts import MAGNITUDE

LENGTHS = ("magnitude", "dora_scale")  # PEFT's, of outputs always; and that of LyCORIS and kohya


def make(parts: Parts, given: Given) -> Update:
    """The matrix: every output is stretched, so that nothing of low rank is left."""
    shown = {DORA.call(part): tensor for part, tensor in parts.items()}
    return _of_pair(lora.make(parts, given), given.layer.weight, parts, given, shown)


def make_embedding(parts: Parts, given: Given) -> Update:
    """The same of a table that is kept as (tokens, dim)."""
    shown = {DORA_EMBEDDING.call(part): tensor for part, tensor in parts.items()}
    weight = transposed(given.layer.weight)
    return _of_pair(embedding.make(parts, given), weight, parts, given, shown)


def _of_pair(pair: Update, weight: Tensor, parts: Parts, given: Given, shown: Parts) -> Update:
    lengths, (outs, ins) = parts["magnitude"], (pair.up.shape[0], pair.down.shape[1])
    if prod(lengths.shape) != outs or max(lengths.shape) != outs or pair.blocks > 1:
        raise misfit(given.where, shown)
    if weight.shape != (outs, ins):
        raise misfit(given.where, {**shown, "its layer": weight})
    check_rank(given, pair.down.shape[0])
    slot = stretched(Slot(pair.up, pair.down, given.scale), lengths, weight)
    return Update(slot.up, slot.down, None, pair.kernel, pair.kind)


def stretched(slot: Slot, lengths: Tensor, weight: Tensor, inputs: int = 0) -> Slot:
    """The update W + ΔW at these lengths, less W.

    Args:
        weight: (out, in · Π kernel).   inputs: how many of them have a length each; 0 where the outputs have.
    """
    scale = slot.scale

    def whole(up: Array, down: Array, lengths: Array, weight: Array) -> Array:
        turned = weight + scale * (up @ down)
        apart = turned.reshape(len(turned), inputs or 1, -1)  # (out, in or 1, the rest)
        now = np.linalg.norm(apart, axis=(0, 2) if inputs else (1, 2))
        stretch = lengths.reshape(-1) / np.where(now == 0, 1, now)
        sides = stretch[None, :, None] if inputs else stretch[:, None, None]
        changed: Array = (sides * apart).reshape(weight.shape) - weight
        return changed

    return Slot(*Product.full([slot.up, slot.down, lengths, weight], slot.shape, whole).factors(), 1.0)


def of_image(slot: Slot, parts: Parts, weight: Tensor, kernel: tuple[int, ...], where: str) -> Slot:
    """The same in an image file. The shape of a `dora_scale` says whose lengths these are.

    Raises:
        SourceError: their shape fits neither outputs nor inputs.
    """
    name = next(name for name in LENGTHS if name in parts)
    lengths, (outs, ins), shape = parts[name], slot.shape, parts[name].shape
    check_float(lengths, f"{name} of {where}")
    check_full(where, lengths)
    inputs = ins // prod(kernel)
    if prod(shape) == outs and (name == "magnitude" or shape[:1] == (outs,)):
        return stretched(slot, widened(lengths), weight)
    if name == "dora_scale" and shape[:1] == (1,) and shape[1:2] == (inputs,) and prod(shape) == inputs:
        return stretched(slot, widened(lengths), weight, inputs)
    raise SourceError(
        f"{name} {list(shape)} of {where} fits neither its {outs} outputs nor its {inputs} inputs."
    )


DORA = Form(
    name="dora",
    words="DoRA",
    formula="`diag(m / ‖V‖) V − W`, V = W + s·B·A",
    units="min(out, in)",
    make=make,
    peft={"down": lora.PAIR["down"], "up": lora.PAIR["up"], "magnitude": MAGNITUDE},
    must=("down", "up", "magnitude"),
    types={"LORA": "lora_alpha"},
    setting="use_dora",
    bare=False,
    needs="base",
    scaled=False,
    full=True,
    conv=True,
)
DORA_EMBEDDING = replace(
    DORA,
    name="dora_embedding",
    words="DoRA of an embedding",
    formula="the same of the table, (dim, tokens)",
    make=make_embedding,
    peft={**embedding.EMBEDDING.peft, "magnitude": MAGNITUDE},
    must=("embedding_A", "embedding_B", "magnitude"),
    conv=False,
)
