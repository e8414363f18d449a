"""Factors in 8-bit floats with a scale beside them, and files that only nunchaku unpacks.

    X.lora_down.weight (F8)    X.lora_down.scale_weight, .weight_scale or .weight_scale_inv

A scale is one number, or one for each row.

A factor is then the stored one times its scale. Scales of inputs (`scale_input`) change no weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from loramerge.adapters.adapter import Adapter, Slot, Tensor
from loramerge.adapters.late import late
from loramerge.arrays.backend import Array
from loramerge.arrays.dtypes import wide
from loramerge.errors import IncompatibleError, printable
from loramerge.formats.files.safetensors import File
from loramerge.formats.files.views import SMALL_FLOATS, View, nbytes, widened

ENDS = ("scale_weight", "weight_scale", "weight_scale_inv")  # ComfyUI's, vLLM's, DeepSeek's
INPUTS = late(r"(?s)(?:.*\.)?(?:scale_input|input_scale|scaled_fp8)")
PACKED = ("smooth_factor", "scale", "transformer_blocks.")  # one of these is in every such key
NUNCHAKU = late(
    r"(?s)"
    r".*\.(?:smooth_factor(?:_orig)?|wscales|wtscale|wcscales)"
    r"|.*transformer_blocks\.\d+\.(?:.*\.)?proj_(?:down|up)|.*transformer_blocks\.\d+\.(?:.*\.)?(?:qkv_proj|qkv|add_qkv_proj|out_proj|mlp_(?:context_)?fc[12]|linear)"
    r"(?:_context)?\.lora_(?:down|up)",
)


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Scaled:
    """A tensor that is another one times a number; code that multiplies by numbers anyway takes it apart."""

    tensor: Tensor
    factor: float

    @property
    def dtype(self) -> str:
        return "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def held(self) -> int:
        return nbytes(self.tensor) + self.tensor.held + 2 * 8 * prod(self.shape)

    def read(self) -> Array:
        return (wide(self.tensor.read()) * self.factor).astype(np.float32)


def descaled(file: File) -> File:
    """The file with its scales inside its factors.

    Raises:
        IncompatibleError: a scale of another shape than that of a number or of a number for each row, or the
            file is packed for nunchaku.
    """
    _check_packed(file)
    small = {key for key, tensor in file.tensors.items() if tensor.dtype in SMALL_FLOATS}
    scales = {of: key for key in file.tensors if (of := _of(key, small)) is not None}
    if not scales:
        return file
    gone = set(scales.values()) | set(filter(INPUTS.fullmatch, file.tensors))
    kept = {key: tensor for key, tensor in file.tensors.items() if key not in gone}
    return replace(file, tensors=kept | {k: _scaled(file.tensors, k, s) for k, s in scales.items()})


def _of(key: str, small: set[str]) -> str | None:
    """The key of the factor that a scale is of."""
    stem, _, end = key.rpartition(".")
    return f"{stem}.weight" if end in ENDS and f"{stem}.weight" in small else None


def _scaled(tensors: Mapping[str, Tensor], key: str, scale: str) -> Tensor:
    stored, found = tensors[key], np.asarray(wide(tensors[scale].read()))
    if found.size == 1:
        return Scaled(widened(stored), float(found.reshape(())))
    if found.size != stored.shape[0] or found.shape[0] != found.size:
        raise IncompatibleError(
            f"{printable(scale)} has the shape {found.shape}: of a factor {stored.shape} only one scale, or "
            "one for each row, is read."
        )
    rows = found.reshape(-1, *[1] * (len(stored.shape) - 1))
    return View((stored,), stored.shape, "F32", _times(rows), 2 * 8 * prod(stored.shape))


def _times(rows: Array) -> Callable[[Array], Array]:
    return lambda array: (wide(array) * rows).astype(np.float32)


def folded(adapter: Adapter) -> Adapter:
    """The adapter with the scales of its factors in the scales of its modules: exactly."""
    if not any(isinstance(t, Scaled) for slot in adapter.slots.values() for t in (slot.up, slot.down)):
        return adapter
    return replace(adapter, slots={target: _folded(slot) for target, slot in adapter.slots.items()})


def _folded(slot: Slot) -> Slot:
    if isinstance(up := slot.up, Scaled):
        slot = replace(slot, up=up.tensor, scale=slot.scale * up.factor)
    if isinstance(down := slot.down, Scaled):
        slot = replace(slot, down=down.tensor, scale=slot.scale * down.factor)
    return slot


def _check_packed(file: File) -> None:
    keys = (key for key in file.tensors if any(word in key for word in PACKED))
    if odd := next(filter(NUNCHAKU.fullmatch, keys), None):
        raise IncompatibleError(
            f"{printable(file.name)} is packed for nunchaku ({printable(odd, 80)}): its factors are "
            "reordered for GPU kernels, padded and, in models, quantised. Merge the adapters that it was "
            "made from, and convert the merge with nunchaku."
        )
