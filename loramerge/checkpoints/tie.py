"""The embedding that a model gives to its head, too: both are one tensor, and most files hold it once."""

from __future__ import annotations

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.checkpoints.checkpoint import Checkpoint, Key
from loramerge.formats.models.architectures import architectures

INPUTS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "wemb", "shared")
HEAD = "lm_head.weight"
OTHER_HEADS = ("embed_out", "proj_out", "output_layer", "output_projection", "decoder", "vocab_projector")
FIRST_HEADS = ("head.weight", "output.weight")  # of models that call it so beside their layers
TYING = "tie_word_embeddings"
SPEAKS = ("CausalLM", "LMHeadModel", "ConditionalGeneration", "MaskedLM")


def embedding(checkpoint: Checkpoint) -> Key | None:
    """The input embedding that a head may be tied to; None if the model has no head."""
    classes = architectures(checkpoint.config("model"))
    if not any(each.endswith(SPEAKS) for each in classes) and (classes or not _says(checkpoint)):
        return None
    found = [key for key in checkpoint.tensors if key[1].endswith(".weight") and _module(key[1]) in INPUTS]
    return next(iter(found), None)


def head(checkpoint: Checkpoint) -> Key | None:
    """The head of a model over its tokens, however its file calls it; None if the file has none."""
    source, there = embedding(checkpoint), checkpoint.tensors
    if source is None or ("model", HEAD) in there:
        return ("model", HEAD) if ("model", HEAD) in there else None
    table = there[source].shape
    found = [
        key
        for key, tensor in there.items()
        if (_module(key[1]) == "lm_head" and tensor.shape[1:] == table[1:])
        or (_is_other_head(key[1]) and tensor.shape == table)
    ]
    return min(found, key=lambda key: key[1].count("."), default=None)


def is_tied(checkpoint: Checkpoint) -> bool:
    """Whether the head of a model is its embedding: the file has no head, or says so and holds it twice."""
    source, own = embedding(checkpoint), head(checkpoint)
    if source is None or own is None:
        return source is not None and checkpoint.config("model").get(TYING) is not False
    return _says(checkpoint) and same(checkpoint.tensors[own], checkpoint.tensors[source])


def copies(checkpoint: Checkpoint) -> list[str]:
    """What else a model gives its embedding to: a tied head, and the towers that share it."""
    source = embedding(checkpoint)
    if source is None:
        return []
    start = source[1].removesuffix("shared.weight")
    towers = [f"{start}{each}.embed_tokens.weight" for each in ("encoder", "decoder") if start != source[1]]
    found = [name for name in towers if ("model", name) not in checkpoint.tensors]
    return [*found, head_name(checkpoint)] if is_tied(checkpoint) and is_plain(checkpoint, source) else found


def head_name(checkpoint: Checkpoint) -> str:
    """What its head is called, or would be if it were not tied."""
    own = head(checkpoint)
    if own is not None:
        return own[1]
    return "proj_out.weight" if checkpoint.config("model").get("model_type") == "whisper" else HEAD


def is_plain(checkpoint: Checkpoint, source: Key) -> bool:
    """Whether a head is its embedding and no more: those of BERT also have layers and a bias of their own."""
    masked = any(each.endswith("MaskedLM") for each in architectures(checkpoint.config("model")))
    return not masked and _module(source[1].rpartition(".")[0]) != "embeddings"


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bytes."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    first, second = (np.ascontiguousarray(each.read()).reshape(-1) for each in (one, other))
    return bool(np.array_equal(first.view(np.uint8), second.view(np.uint8)))


def _module(name: str) -> str:
    """The last but one name of a path: the module of a parameter."""
    return name.rpartition(".")[0].rpartition(".")[2]


def _is_other_head(name: str) -> bool:
    return name in FIRST_HEADS or (name.endswith(".weight") and _module(name) in OTHER_HEADS)


def _says(checkpoint: Checkpoint) -> bool:
    return bool(checkpoint.config("model").get(TYING))
