"""Quantised weights: 8-bit floats with scales are read and written; other kinds are refused.

A weight W in 8-bit floats is q · s: one scale for the whole tensor, one for each row, or one for each block
of 128 × 128. Products of q and s are exact in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import numpy as np

from loramerge.adapters.adapter import Computed, Tensor
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array
from loramerge.checkpoints.checkpoint import Checkpoint, Key
from loramerge.errors import IncompatibleError, printable
from loramerge.formats.files.safetensors.dtypes import numpy_dtype

FLOAT8 = {"F8_E4M3": 448.0, "F8_E5M2": 57344.0}  # safetensors name -> the largest value
READ = ("fp8", "fbgemm_fp8", "compressed-tensors")
SCALES = ("weight_scale_inv", "weight_scale", "scale_weight")  # DeepSeek's, vLLM's, ComfyUI's
OF_PARAMETERS = ("_scale_inv", "_scale")  # of the tensor that holds all experts
MARKS = {  # last part of a tensor's name -> whose quantisation it is of
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
    "wscales": "nunchaku (SVDQuant)",
    "smooth_factor": "nunchaku (SVDQuant)",
    "weight_scale_2": "NVFP4",
    "W_q": "HQQ",
    "_data": "quanto",
    "codebooks": "AQLM",
    "weight_packed": "compressed-tensors (packed integers)",
    "blocks": "MXFP4",
}
SHARED_MARKS = ("qweight", "qzeros")  # which nunchaku has, too: other marks tell more
SPELT = {"bitsandbytes": "bitsandbytes", "gptq": "GPTQ", "awq": "AWQ", "mxfp4": "MXFP4"}
BLOCK = 128


def check_readable(checkpoint: Checkpoint) -> None:
    """Refuse any other quantisation, by its name.

    Raises:
        IncompatibleError: it has one.
    """
    for part, model in checkpoint.models.items():
        if (method := _method(model.config)) is not None and method not in READ:
            raise _refused(checkpoint, part, SPELT.get(method, method))
    for part, key in sorted(checkpoint.tensors, key=lambda key: key[1].endswith(SHARED_MARKS)):
        last = key.rpartition(".")[2]
        if last in MARKS and not (last == "blocks" and not key.endswith("_blocks")):
            raise _refused(checkpoint, part, MARKS[last])
        if key.endswith("_blocks") and (part, f"{key.removesuffix('_blocks')}_scales") in checkpoint.tensors:
            raise _refused(checkpoint, part, "MXFP4")


def _method(config: Mapping[str, Any]) -> str | None:
    said = config.get("quantization_config")
    found = said.get("quant_method") if isinstance(said, Mapping) else None
    return found if isinstance(found, str) else "an unnamed method" if isinstance(said, Mapping) else None


def _refused(checkpoint: Checkpoint, part: str, method: str) -> IncompatibleError:
    where = "" if part in ("model", "file") else f" ({part})"
    return IncompatibleError(
        f"{printable(checkpoint.name, 1000)}{where} is quantised with {printable(method)}: its weights "
        "are not exact. Name the model that it was made from; the result can be quantised anew."
    )


def scale_of(tensors: Mapping[Key, Tensor], key: Key) -> Key | None:
    """The scales of a weight in 8-bit floats; None where it has none, which is a scale of 1."""
    part, name = key
    if tensors[key].dtype not in FLOAT8:
        return None
    stem = name.removesuffix("weight")
    ends = SCALES if stem != name else OF_PARAMETERS
    return next(((part, stem + last) for last in ends if (part, stem + last) in tensors), None)


def unscaled(tensors: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """The same weights with their scales multiplied in, to be read only, and without the scales."""
    scales = {key: scale for key in tensors if (scale := scale_of(tensors, key)) is not None}
    alone = set(scales.values())
    return {
        key: Computed(each.shape, partial(numbers, tensors, key), each.dtype) if key in scales else each
        for key, each in tensors.items()
        if key not in alone
    }


def check_float(tensors: Mapping[Key, Tensor], key: Key) -> None:
    """Raises IncompatibleError: a tensor is stored as no float."""
    kind = tensors[key].dtype
    if numpy_dtype(kind) is None or kind not in (*dtypes.FLOATS, *FLOAT8):
        raise IncompatibleError(f"{printable(key[1])} is stored as {kind}, and a float is needed.")


def numbers(tensors: Mapping[Key, Tensor], key: Key) -> Array:
    """The numbers of a weight: float64 if it has scales, else as they are stored.

    Raises:
        IncompatibleError: no float, or scales of a shape that is not known.
    """
    check_float(tensors, key)
    array, scale = np.asarray(tensors[key].read()), scale_of(tensors, key)
    if scale is None:
        return array
    return array.astype(np.float64) * spread(tensors[scale].read().astype(np.float64), array.shape, key)


def grain(scale: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """What each scale is for: "whole", "row" or "block"; "" if that is not known.

    >>> grain((56, 128), (7168, 16384)), grain((7168, 1), (7168, 16384)), grain((1, 8), (8, 8))
    ('block', 'row', '')
    """
    if prod(scale) == 1:
        return "whole"
    if len(shape) == 2 and scale == (-(-shape[0] // BLOCK), -(-shape[1] // BLOCK)):
        return "block"
    return "row" if scale[0] == shape[0] == prod(scale) else ""


def spread(scale: Array, shape: tuple[int, ...], key: Key) -> Array:
    """Scales in a shape that multiplies a weight: of the whole, of rows, or of blocks of 128 × 128."""
    match grain(scale.shape, shape):
        case "whole":
            return scale.reshape(())
        case "row":
            return scale.reshape(shape[0], *(1 for _ in shape[1:]))
        case "block":
            return np.repeat(np.repeat(scale, BLOCK, 0)[: shape[0]], BLOCK, 1)[:, : shape[1]]
    raise IncompatibleError(
        f"The scales of {printable(key[1])} have shape {list(scale.shape)} for a weight of {list(shape)}, "
        "which is neither one, one a row, nor one a block of 128 × 128."
    )


def rescaled(weight: Array, scale: Array, dtype: str) -> Array:
    """The scales with which a changed weight is stored: its own, larger only where its values do not fit."""
    shape, most = weight.shape, FLOAT8[dtype]
    peak = np.abs(weight)
    kind = grain(scale.shape, shape)
    if kind == "whole":
        needed = peak.max(initial=0.0).reshape(scale.shape)
    elif kind == "row":
        needed = peak.reshape(shape[0], -1).max(axis=1, initial=0.0).reshape(scale.shape)
    else:
        tall, wide = (size * BLOCK for size in scale.shape)
        padded = np.pad(peak, [(0, tall - shape[0]), (0, wide - shape[1])])
        needed = padded.reshape(scale.shape[0], BLOCK, scale.shape[1], BLOCK).max(axis=(1, 3))
    fits = needed <= most * scale.astype(np.float64)
    wanted = np.where(fits, scale, np.nextafter((needed / most).astype(np.float32), np.float32(np.inf)))
    return wanted.astype(scale.dtype)
