"""Which kind of module a weight belongs to, by its name, its shape and the model's config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Any

from loramerge.adapters.target import Kind, Layout

EMBEDDING = re.compile(
    r"(.*_)?(embed(ding)?s?|embed_tokens(_per_layer)?|embed_positions|embed_in|wte|wpe|shared"
    r"|relative_attention_bias)|tok_embeddings|.*_embeddings?"
)
NORM = re.compile(r".*(norm|ln)[_\d]*[a-z]*", re.IGNORECASE)
CONV1D = (
    "gpt2",
    "openai-gpt",
    "imagegpt",
    "decision_transformer",
    "clvp",
)  # their linear layers are (in, out)
CONV1D_NAMES = ("c_attn", "c_proj", "c_fc", "q_attn")
TURNED_EXPERTS = (
    "gpt_oss",
    "aria",
    "aria_text",
    "openai_privacy_filter",
)  # `is_transposed`, which PEFT asks for
ROUTER = re.compile(r"(mlp|block_sparse_moe|feed_forward|ffn)\.(gate|router)|.*\.router")

Shapes = Mapping[str, tuple[int, ...]]


def kind(path: str, parameter: str, shape: tuple[int, ...]) -> Kind | None:
    """What a module does with a weight; None for what is no matrix of a module: norms, biases, tables.

    >>> kind("model.embed_tokens", "weight", (32, 8)), kind("h.0.mlp.up_proj", "weight", (16, 8))
    ('embedding', 'linear')
    >>> kind("model.norm", "weight", (8,)), kind("conv_in", "weight", (8, 4, 3, 3))
    (None, 'conv')
    """
    last = path.rpartition(".")[2]
    if len(shape) == 3 and last == "experts" and "bias" not in parameter:
        return "expert"
    if parameter != "weight" or min(shape, default=0) == 0:
        return None
    if len(shape) == 2:
        if EMBEDDING.fullmatch(last):
            return "embedding"
        return None if NORM.fullmatch(last) else "linear"
    return "conv" if len(shape) in (3, 4, 5) and shape[1] > 1 else None


def is_router(path: str) -> bool:
    """Whether a module chooses experts: transformers keeps it as a parameter, which no server adapts."""
    return ROUTER.fullmatch(".".join(path.split(".")[-2:])) is not None


def is_conv1d(path: str, config: Mapping[str, Any], shapes: Shapes) -> bool:
    """Whether a linear layer is stored as (in, out): by the model's type, else by names and shapes."""
    if path.rpartition(".")[2] not in CONV1D_NAMES:
        return False
    if "model_type" in config:
        return config["model_type"] in CONV1D
    seen = [shape for key, shape in shapes.items() if key.endswith(".c_attn.weight") and len(shape) == 2]
    return bool(seen) and all(shape[1] == 3 * shape[0] for shape in seen)


def are_experts_turned(config: Mapping[str, Any]) -> bool:
    """Whether a tensor of all experts is (experts, in, out)."""
    return config.get("model_type") in TURNED_EXPERTS


def layout(kind: Kind, shape: tuple[int, ...], turned: bool) -> Layout:
    """How the base stores a weight of this kind."""
    if kind == "conv":
        return Layout(kernel=tuple(shape[2:]))
    if kind == "expert":
        return Layout(blocks=shape[0])
    return Layout(fan_in_fan_out=turned and kind == "linear")


def size(kind: Kind, shape: tuple[int, ...], turned: bool) -> tuple[int, int]:
    """(out, in) of the update."""
    flat = shape[-2:] if kind == "expert" else (shape[0], prod(shape[1:]))
    return (flat[1], flat[0]) if turned or kind == "embedding" else (flat[0], flat[1])
