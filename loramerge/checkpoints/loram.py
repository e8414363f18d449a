"""LoRAM: an adapter that was trained on a pruned model, scattered back to the sizes of the whole one. Exact.

    rows of `up` of q, k, v, gate and up, columns of `down` of o and down, at the indices that were kept
    <dir>/model.layers.N.{mlp.gate_proj,self_attn.k_proj}.pt: {pruned_idx}, those that were not

For q and o, one index of k stands for all query heads that share that key head. (arXiv:2502.13533)
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from loramerge.adapters.adapter import Adapter, Slot, Tensor
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.errors import IncompatibleError, SourceError, printable
from loramerge.formats.files.views import View
from loramerge.formats.forms.form import Base, Layer
from loramerge.formats.peft.read import open_weights

MODULE = re.compile(r"(?P<layer>.*\blayers\.\d+)\.(?P<part>mlp|self_attn)\.(?P<name>\w+)")
INDEX = {"mlp": "mlp.gate_proj", "self_attn": "self_attn.k_proj"}
ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # the others lose columns
SHARED = ("q_proj", "o_proj")  # several query heads for one of keys


def scattered(adapter: Adapter, folder: Path, base: Base, allow_pickle: bool) -> Adapter:
    """The adapter in the sizes of its base.

    Raises:
        SourceError: indices are missing, or do not fit.
        IncompatibleError: the base has no such layer; or pickles are not allowed.
    """
    paths = {target.path for target in adapter.slots}
    keys = {f"{m['layer']}.self_attn.k_proj" for path in paths if (m := MODULE.fullmatch(path))}
    layers = base.layers(paths | keys)
    slots = {
        target: _scattered(target, slot, _layer(target, layers, base), layers, folder, allow_pickle)
        for target, slot in adapter.slots.items()
    }
    return replace(adapter, slots=slots, renamed=True)


def _layer(target: Target, layers: Mapping[str, Layer], base: Base) -> Layer:
    if target.path not in layers:
        raise IncompatibleError(f"{printable(base.name)} has no linear layer for {printable(target)}.")
    return layers[target.path]


def _scattered(
    target: Target, slot: Slot, layer: Layer, layers: Mapping[str, Layer], folder: Path, allow_pickle: bool
) -> Slot:
    if slot.shape == layer.size:
        return slot
    found = MODULE.fullmatch(target.path)
    if found is None:
        raise IncompatibleError(f"{printable(target)} is {list(slot.shape)}, and no pruning makes it whole.")
    axis = 0 if found["name"] in ROWS else 1
    kept = _kept(found, layer.size[axis], layers, folder, allow_pickle)
    if len(kept) != slot.shape[axis] or slot.shape[1 - axis] != layer.size[1 - axis]:
        raise SourceError(
            f"{printable(target)} is {list(slot.shape)}, but {len(kept)} of {layer.size[axis]} indices of it "
            "were kept: adapter, indices and base do not belong together."
        )
    if axis == 0:
        return replace(slot, up=_spread(slot.up, kept, layer.size[0], 0))
    return replace(slot, down=_spread(slot.down, kept, layer.size[1], 1))


def _kept(
    found: re.Match[str], size: int, layers: Mapping[str, Layer], folder: Path, allow_pickle: bool
) -> Array:
    """The indices of one side of a module that were not pruned."""
    layer = found["layer"].rpartition("layers.")[2]
    path = folder / f"model.layers.{layer}.{INDEX[found['part']]}.pt"
    if not os.path.isfile(path):
        raise SourceError(f"{printable(path.name)} is missing in {printable(str(folder))}.")
    tensors = open_weights(path, path.name, allow_pickle).tensors
    if "pruned_idx" not in tensors or len(tensors["pruned_idx"].shape) != 1:
        raise SourceError(f"{printable(path.name)} holds no list pruned_idx.")
    pruned = tensors["pruned_idx"].read().astype(np.int64)
    if found["name"] in SHARED:
        times = _times(f"{found['layer']}.self_attn.k_proj", size, layers, path)
        pruned = (pruned[:, None] * times + np.arange(times)).reshape(-1)
    if pruned.size and not (0 <= pruned.min() and pruned.max() < size):
        raise SourceError(f"The indices of {printable(path.name)} reach beyond {size}.")
    kept: Array = np.setdiff1d(np.arange(size), pruned)
    return kept


def _times(keys: str, size: int, layers: Mapping[str, Layer], path: Path) -> int:
    """How many query heads share a head of keys."""
    if keys not in layers:
        raise SourceError(f"{printable(path.name)} is of {printable(keys)}, which the base does not have.")
    times, rest = divmod(size, layers[keys].size[0])
    if rest:
        raise SourceError(f"{size} is no multiple of the outputs of {printable(keys)}.")
    return times


def _spread(tensor: Tensor, kept: Array, size: int, axis: int) -> Tensor:
    """A factor with zeros where it was pruned."""
    shape = (size, tensor.shape[1]) if axis == 0 else (tensor.shape[0], size)

    def spread(array: Array) -> Array:
        whole = np.zeros(shape, array.dtype)
        whole[(kept, slice(None)) if axis == 0 else (slice(None), kept)] = array
        return whole

    return View((tensor,), shape, tensor.dtype, spread)
