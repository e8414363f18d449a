"""Modules of language models that are one in some and several in others: which rows of it are each of them.

`rows` says how: `equal` parts; `query`, where the last two are equal and the first takes what they leave;
`value`, where the first two are; `turns`, row by row; `unknown`, where each model mixes heads in its own way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from loramerge.adapters.late import late

Rows = Literal["equal", "query", "value", "turns", "unknown"]
QKV = ("q_proj", "k_proj", "v_proj")
GATED = ("gate_proj", "up_proj")


@dataclass(frozen=True, eq=False, repr=False)
class Projection:
    """A fused module by the last of its name, the parts in the order of its rows, and how these lie."""

    whole: str
    parts: tuple[str, ...]
    rows: Rows

    def sizes(self, outs: int, known: Mapping[str, int]) -> list[int] | None:
        """The rows of each part of a module of so many, where those of some parts are `known`.

        None if they cannot be told, or if what is known is not so.

        >>> Projection("qkv_proj", QKV, "query").sizes(64, {"k_proj": 16})
        [32, 16, 16]
        """
        count = len(self.parts)
        if self.rows in ("equal", "turns"):
            found = [outs // count] * count
        elif self.rows == "unknown" or not known:
            return None
        else:
            found = self._three(outs, known)
        fits = sum(found) == outs and min(found) > 0
        return found if fits and all(found[self.parts.index(p)] == n for p, n in known.items()) else None

    def _three(self, outs: int, known: Mapping[str, int]) -> list[int]:
        odd = 0 if self.rows == "query" else 2  # the part that may be of another size than the other two
        pair = [known[part] for i, part in enumerate(self.parts) if i != odd and part in known]
        each = pair[0] if pair else (outs - known[self.parts[odd]]) // 2
        return [outs - 2 * each if i == odd else each for i in range(3)]

    def height(self, known: Mapping[str, int]) -> int | None:
        """The rows of the whole, from those of its parts; None if they do not tell.

        >>> Projection("qkv_proj", QKV, "query").height({"q_proj": 32, "v_proj": 16})
        64
        """
        if self.rows in ("equal", "turns"):
            return len(self.parts) * next(iter(known.values()))
        odd = self.parts[0 if self.rows == "query" else 2]
        pair = [rows for part, rows in known.items() if part != odd]
        return known[odd] + 2 * pair[0] if self.rows != "unknown" and odd in known and pair else None

    def spans(self, sizes: Sequence[int]) -> list[list[slice]]:
        """Which rows of the whole each part has.

        >>> Projection("gate_up_proj", GATED, "turns").spans([2, 2])
        [[slice(0, 4, 2)], [slice(1, 4, 2)]]
        """
        if self.rows == "turns":
            return [[slice(i, sum(sizes), len(sizes))] for i in range(len(sizes))]
        return [[slice(*ends)] for ends in pairwise(accumulate(sizes, initial=0))]


PROJECTIONS = (  # another model joins by a line
    Projection("qkv_proj", QKV, "query"),  # Phi-3, Phi-4, vLLM's own names
    Projection("gate_up_proj", GATED, "equal"),  # Phi-3, Phi-4, GLM; experts of transformers 5
    Projection("in_proj_qkv", ("in_proj_q", "in_proj_k", "in_proj_v"), "value"),  # Qwen3.5
    Projection("fused_qkv_a_proj_with_mqa", ("q_a_proj", "kv_a_proj_with_mqa"), "unknown"),  # vLLM's DeepSeek
    Projection("W_pack", QKV, "equal"),  # Baichuan
    Projection("Wqkv", ("Wq", "Wk", "Wv"), "equal"),  # ModernBERT, MPT
    Projection("qkv", ("q", "k", "v"), "equal"),  # the vision towers of Qwen
    Projection("qkv", QKV, "equal"),
    Projection("weights_in", GATED, "equal"),  # DINOv2
    Projection("c_attn", QKV, "unknown"),
    Projection("query_key_value", QKV, "unknown"),  # GPT-NeoX, BLOOM and Falcon interleave heads, ChatGLM not
    Projection("query_key_value", ("query", "key", "value"), "unknown"),
    Projection("wqkv", QKV, "unknown"),  # InternLM2: by groups of heads
    Projection("wqkv", ("wq", "wk", "wv"), "unknown"),
    Projection("in_proj_qkvz", ("in_proj_qkv", "in_proj_z"), "unknown"),  # Qwen3-Next by heads, vLLM not
    Projection("in_proj_ba", ("in_proj_b", "in_proj_a"), "unknown"),
)

_FUSED = {  # the models whose own module is the fused one, by the names of bases and classes
    "qkv_proj": late(r"phi-?_?[34]", re.IGNORECASE),
    "gate_up_proj": late(r"phi-?_?[34]|glm", re.IGNORECASE),
    "in_proj_qkv": late(r"qwen3[._]5", re.IGNORECASE),
}
_SPLIT = late(  # and those whose own modules are the parts
    r"llama|mistral|qwen|gemma|olmo|smollm|granite|starcoder|deepseek|^unsloth/phi|cohere|falcon3|yi-",
    re.IGNORECASE,
)
_TURNS = late(r"gpt-?_?oss", re.IGNORECASE)
_CROSSED = late(r"llama-?_?4", re.IGNORECASE)


def native(projection: Projection, base: str) -> bool | None:
    """Whether a model of this name or class has the fused module; None if that is not known.

    >>> native(PROJECTIONS[0], "Phi3ForCausalLM"), native(PROJECTIONS[0], "meta-llama/Llama-3.1-8B")
    (True, False)
    """
    if _SPLIT.search(base) and not (projection.whole == "in_proj_qkv" and _FUSED["in_proj_qkv"].search(base)):
        return False
    own = _FUSED.get(projection.whole)
    return True if own is not None and own.search(base) else None


def alternates(base: str) -> bool:
    """Whether the gate and the value of a model's experts take turns row by row."""
    return _TURNS.search(base) is not None


def crossed(base: str) -> bool:
    """Whether PEFT takes rows for columns in a model's fused experts, which it stores the other way round."""
    return _CROSSED.search(base) is not None
