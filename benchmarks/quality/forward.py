"""The forward pass that measures merges: what stack.py says, up to rounding, in half the time.

Strengths share the embedding, and q, k and v are one product. Of strings only the letters that count
go through the end of the last block. Attention is written out, because that of torch is for longer texts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.quality.stack import HEADS, State, _norm

LOUD = 80.0  # a score of which exp is still a number in float32


def joined(state: State, many: int, layers: int) -> State:
    """The weights with q, k and v of a block in one; (S, out, in) where one of them is."""
    found = dict(state)
    for n in range(layers):
        each = [state[f"blocks.{n}.{name}.weight"] for name in "qkv"]
        if any(weight.dim() == 3 for weight in each):
            each = [weight.expand(many, *weight.shape[-2:]) for weight in each]
        found[f"blocks.{n}.qkv.weight"] = torch.cat(each, dim=-2)
        found[f"blocks.{n}.qkv.bias"] = torch.cat([state[f"blocks.{n}.{name}.bias"] for name in "qkv"])
    return found


def logits(state: State, causal: bool, x: Tensor, layers: int, start: int = 0) -> Tensor:
    """Logits (S, N, L - start, classes) of x (N, L) or (N, L, 4), with S = 1 if no weight differs.

    Args:
        state: of `joined`.   start: the first place whose answer counts; without causal there is one answer.
    """
    embed = F.embedding(x, state["embed.weight"]) if causal else _linear(state, "embed", x[None])[0]
    h = (embed + state["place"][: x.shape[1]])[None]
    for n in range(layers):
        h = _block(state, f"blocks.{n}", causal, h, start if n == layers - 1 else 0)
    return _linear(state, "head", _norm(state, "norm", h if causal else h.mean(dim=2, keepdim=True)))


def _block(state: State, path: str, causal: bool, x: Tensor, start: int) -> Tensor:
    """The places from `start` on."""
    parts = _linear(state, f"{path}.qkv", _norm(state, f"{path}.first", x))
    x = x[:, :, start:] + _linear(state, f"{path}.o", _attention(parts, causal, start))
    up = _linear(state, f"{path}.up", _norm(state, f"{path}.second", x))
    return x + _linear(state, f"{path}.down", F.gelu(up))


def _attention(parts: Tensor, causal: bool, start: int) -> Tensor:
    """(S, N, L - start, width) of q, k and v side by side (S, N, L, 3 · width)."""
    s, n, length, width = parts.shape[0], parts.shape[1], parts.shape[2], parts.shape[3] // 3
    each = parts.view(s * n, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)  # (3, S·N, heads, L, d)
    q, k, v = (part.reshape(s * n * HEADS, -1, part.shape[-1]) for part in (each[0, :, :, start:], *each[1:]))
    scores = torch.bmm(q * q.shape[-1] ** -0.5, k.mT)  # (B, L - start, L)
    earlier = torch.ones(length, length).tril()[start:] if causal else torch.ones(length - start, length)
    if scores.max() > LOUD:
        scores -= scores.masked_fill(earlier == 0, -torch.inf).amax(dim=-1, keepdim=True)
        scores.clamp_(max=0.0)
    shares = scores.exp_()
    if causal:
        shares *= earlier
    seen = torch.bmm(shares, v) / (shares @ torch.ones(length, 1))
    return seen.view(s, n, HEADS, length - start, -1).transpose(2, 3).reshape(s, n, -1, width)


def _linear(state: State, path: str, x: Tensor) -> Tensor:
    weight, bias = state[f"{path}.weight"], state[f"{path}.bias"]
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    some = x.flatten(1, -2).expand(len(weight), -1, -1)
    return torch.baddbmm(bias, some, weight.mT).view(len(weight), *x.shape[1:-1], -1)
