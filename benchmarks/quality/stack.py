"""Many models at once that differ in a few weights: adapters in training, or strengths of one merge.

The same numbers as the model of model.py, up to rounding; a test holds that. Weights that differ have one
more axis in front: (S, out, in).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

HEADS = 4
State = Mapping[str, Tensor]


def logits(state: State, causal: bool, x: Tensor, layers: int) -> Tensor:
    """Logits (S, N, L, classes) of x (S, N, L) or (S, N, L, 4); without causal L is 1."""
    embed = F.embedding(x, state["embed.weight"]) if causal else _linear(state, "embed", x)
    h = embed + state["place"][: x.shape[2]]
    for n in range(layers):
        h = _block(state, f"blocks.{n}", causal, h)
    return _linear(state, "head", _norm(state, "norm", h if causal else h.mean(dim=2, keepdim=True)))


def _block(state: State, path: str, causal: bool, x: Tensor) -> Tensor:
    s, n, length, width = x.shape
    h = _norm(state, f"{path}.first", x)
    parts = (_linear(state, f"{path}.{name}", h) for name in "qkv")
    q, k, v = (part.reshape(s * n, length, HEADS, -1).transpose(1, 2) for part in parts)
    seen = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    x = x + _linear(state, f"{path}.o", seen.transpose(1, 2).reshape(s, n, length, width))
    up = _linear(state, f"{path}.up", _norm(state, f"{path}.second", x))
    return x + _linear(state, f"{path}.down", F.gelu(up))


def _linear(state: State, path: str, x: Tensor) -> Tensor:
    weight, bias = state[f"{path}.weight"], state[f"{path}.bias"]
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    flat = torch.baddbmm(bias, x.flatten(1, -2), weight.mT)
    return flat.view(*x.shape[:-1], -1)


def _norm(state: State, path: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{path}.weight"], state[f"{path}.bias"])
