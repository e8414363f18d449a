"""Embeddings and heads over tokens, where the vocabulary of one source was extended or padded.

A token that an adapter does not know has a row of zeros in its update, which is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array
from loramerge.formats.files.views import View

INPUTS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "wemb", "shared")
HEADS = ("lm_head", "embed_out", "output_layer", "decoder")
MOST = 1.25  # a longer vocabulary, by a shorter one: more is another model


def named(path: str) -> bool:
    """Whether a module has a row for each token.

    >>> named("model.embed_tokens"), named("lm_head"), named("score")
    (True, True, False)
    """
    return path.rpartition(".")[2] in (*INPUTS, *HEADS)


def alike(sizes: Iterable[int]) -> bool:
    """Whether these can be sizes of one vocabulary."""
    known = sorted(sizes)
    return known[-1] <= MOST * known[0]


def padded(tensor: Tensor, size: int, axis: int) -> Tensor:
    """A matrix with zeros for the tokens that it lacks along an axis."""
    lacks = size - tensor.shape[axis]
    if not lacks:
        return tensor
    wide = [(0, lacks if i == axis else 0) for i in range(2)]
    shape = (size, tensor.shape[1]) if axis == 0 else (tensor.shape[0], size)
    return View((tensor,), shape, tensor.dtype, lambda array: np.pad(array, wide))


def mean(parts: Sequence[Tensor], weights: Sequence[float], kind: str) -> Tensor:
    """The weighted mean of whole tensors, row by row, of those that have the row."""
    size = max(part.shape[0] for part in parts)
    shape = (size, *parts[0].shape[1:])

    def make(*arrays: Array) -> Array:
        heights = [len(array) for array in arrays]
        weighed = [sum(w for w, h in zip(weights, heights, strict=True) if h >= each) for each in heights]
        own = weights if all(weighed) else [1.0] * len(weights)  # those of some rows cancel
        total, shares = np.zeros(shape), np.zeros((size, *(1 for _ in shape[1:])))
        for array, weight in zip(arrays, own, strict=True):
            total[: len(array)] += weight * dtypes.wide(array)
            shares[: len(array)] += weight
        return np.asarray(total / shares).astype(dtypes.FLOATS[kind])

    return View(tuple(parts), shape, kind, make, 3 * 8 * prod(shape))
