"""The embedding that a model gives to its head, too: both are one tensor, and most files hold it once."""

from __future__ import annotations

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.checkpoints.checkpoint import Checkpoint, Key
from loramerge.formats.models.architectures import architectures

INPUTS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "wemb")
HEAD = "lm_head.weight"
TYING = "tie_word_embeddings"
SPEAKS = ("CausalLM", "LMHeadModel", "ConditionalGeneration")


def embedding(checkpoint: Checkpoint) -> Key | None:
    """The input embedding that a head may be tied to; None if the model has no head."""
    if not any(each.endswith(SPEAKS) for each in architectures(checkpoint.config("model"))):
        return None
    ends = tuple(f"{name}.weight" for name in INPUTS)
    found = [key for key in checkpoint.tensors if key[1].rpartition(".")[0].rpartition(".")[2] in INPUTS]
    return next((key for key in found if key[1].endswith(ends)), None)


def is_tied(checkpoint: Checkpoint) -> bool:
    """Whether the head of a model is its embedding: the file has no head, or says so and holds it twice."""
    source, head = embedding(checkpoint), checkpoint.tensors.get(("model", HEAD))
    if source is None or head is None:
        return source is not None
    says = checkpoint.config("model").get(TYING)
    return bool(says) and same(head, checkpoint.tensors[source])


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bytes."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    first, second = (np.ascontiguousarray(each.read()).reshape(-1) for each in (one, other))
    return bool(np.array_equal(first.view(np.uint8), second.view(np.uint8)))
