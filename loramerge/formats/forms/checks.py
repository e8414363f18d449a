"""What any stored factor must be: of a float type, not empty, of a size that a model can have."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.arrays.backend import Array
from loramerge.arrays.dtypes import FLOATS
from loramerge.errors import IncompatibleError, SourceError, printable
from loramerge.formats.files.views import SMALL_FLOATS
from loramerge.formats.forms.form import Given

MAX_BLOCKS = 10_000
WHOLE = ("U8", "I8", "I16", "I32", "I64")


def check_float(tensor: Tensor, what: str) -> None:
    """Factors must be of a float type that is read.

    Raises:
        IncompatibleError: it is none.
    """
    if tensor.dtype not in (*FLOATS, *SMALL_FLOATS):
        raise IncompatibleError(f"{what} is stored as {tensor.dtype}; save it as float32 or bfloat16.")


def check_whole(tensor: Tensor, what: str) -> None:
    """Indices must be of a type of whole numbers.

    Raises:
        IncompatibleError: it is none.
    """
    if tensor.dtype not in WHOLE:
        raise IncompatibleError(f"{what} is stored as {tensor.dtype}, and whole numbers are needed.")


def check_full(where: str, *tensors: Tensor) -> None:
    """No dimension may be zero.

    Raises:
        SourceError: one is.
    """
    if any(0 in tensor.shape for tensor in tensors):
        shapes = " and ".join(str(list(tensor.shape)) for tensor in tensors if 0 in tensor.shape)
        raise SourceError(
            f"A factor of {where} is empty ({shapes}): ZeRO-3 of DeepSpeed leaves such if it does not "
            "gather the weights. Save it again with stage3_gather_16bit_weights_on_model_save, or from the "
            "checkpoint by zero_to_fp32.py."
        )


def check_blocks(count: int, where: str) -> None:
    """A stored pair is taken apart into as many updates as it says: no small file may say millions.

    Raises:
        IncompatibleError: it does.
    """
    if count > MAX_BLOCKS:
        raise IncompatibleError(
            f"The factors of {where} mean {count} experts or groups, and {MAX_BLOCKS} is the limit."
        )


def check_dimensions(where: str, tensors: Mapping[str, Tensor]) -> None:
    """Factors are matrices, or those of a convolution of up to three dimensions.

    Raises:
        SourceError: one is not.
    """
    if not all(2 <= len(tensor.shape) <= 5 for tensor in tensors.values()):
        raise misfit(where, tensors)


def missing(tensor: str, where: str) -> SourceError:
    """A tensor that a form cannot be without."""
    return SourceError(f"{tensor} of {where} is missing: the file was cut or badly saved.")


def misfit(where: str, tensors: Mapping[str, Tensor]) -> SourceError:
    """The shapes of these tensors contradict each other."""
    shown = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(tensors.items()))
    return SourceError(f"The factors of {where} do not fit together ({printable(shown)}).")


def unlike(where: str, up: Tensor, down: Tensor) -> SourceError:
    """The two factors of a PEFT pair do not share a rank."""
    shapes = f"lora_B {list(up.shape)} and lora_A {list(down.shape)} of {where}"
    if len(up.shape) == len(down.shape) == 3:
        return SourceError(
            f"{shapes} seem to hold several experts at once, in a layout that is not known: save them as "
            "PEFT does, or each expert by itself."
        )
    return SourceError(f"{shapes} do not share a rank.")


def check_vectors(where: str, tensors: Mapping[str, Tensor]) -> None:
    """These are vectors.

    Raises:
        SourceError: one is not.
    """
    if not all(len(tensor.shape) == 1 for tensor in tensors.values()):
        raise misfit(where, tensors)


def check_matrices(where: str, tensors: Mapping[str, Tensor]) -> None:
    """These are matrices.

    Raises:
        SourceError: one is not.
    """
    if not all(len(tensor.shape) == 2 for tensor in tensors.values()):
        raise misfit(where, tensors)


def check_rank(given: Given, rank: int) -> None:
    """The r of the config, if it says one, is that of the tensors.

    Raises:
        SourceError: it is another.
    """
    if given.rank not in (None, rank):
        raise SourceError(
            f"The config of {given.where} gives it rank {given.rank}, but its tensors have rank {rank}: they "
            "do not belong together."
        )


def within(indices: Array, size: int, where: str) -> Array:
    """Indices as whole numbers.

    Raises:
        SourceError: one is not of so many.
    """
    found: Array = indices.astype(np.int64)
    if found.size and not (0 <= found.min() and found.max() < size):
        raise SourceError(f"The indices of {where} reach beyond {size}: the file was damaged.")
    return found
