"""Outchan: the prompt decides how strongly each output takes part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from loramerge.algorithms.method import Interval, option
from loramerge.routing.bank import Layout, Shapes
from loramerge.routing.gates.gate import ONE, By, Gate, Seen


@dataclass(frozen=True, kw_only=True)
class Outchan(Gate):
    """Outputs that the prompt turns up or down.

        s_t = W_2 gelu(W_1 h_t + b_1) + b_2 for each token t of the prompt
        g   = min(relu(Σ_t p_t s_t), 3), p = softmax of s_t · q over the prompt
        y   = g ∘ (B A x)

    Source: WavLLM, 2024, arXiv:2404.00656. For one prompt it is plain LoRA with B ← diag(g) B, exactly.

    Fails: without the hidden states of the prompt, which the model must give.
    """

    by: ClassVar[By] = "output"
    asks: ClassVar[Literal["", "row", "prompt"]] = "prompt"
    hidden: int = option(1, "Width of the hidden states of the prompt.", ONE)
    inner: int = option(1, "Width between W_1 and W_2.", ONE)
    most: float = option(3.0, "The largest g.", Interval(low=0, low_open=True))

    def shapes(self, layout: Layout) -> Shapes:
        out = layout.shape[0]
        wide = {"inner": (self.inner, self.hidden), "outer": (out, self.inner)}
        return {**wide, "inner_bias": (self.inner,), "outer_bias": (out,), "query": (out,)}

    def scores(self, seen: Seen) -> Any:
        maths, tensors, prompt = seen.maths, seen.tensors, seen.prompt
        inner = prompt @ tensors["inner"].T + tensors["inner_bias"]  # (p, m)
        inner = 0.5 * inner * (1.0 + maths.erf(inner / 2**0.5))
        said = inner @ tensors["outer"].T + tensors["outer_bias"]  # (p, out)
        heat = (said @ tensors["query"])[None]  # (1, p)
        shares = maths.exp(heat - maths.largest(heat))
        return (shares / maths.total(shares)) @ said  # (1, out)

    def weigh(self, seen: Seen) -> Any:
        maths, total = seen.maths, self.scores(seen)
        total = maths.where(total > 0, total, 0.0)
        return maths.where(total < self.most, total, self.most)
