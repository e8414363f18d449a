"""Projections whose rows lie head by head, or group by group: GPT-NeoX, BLOOM, Falcon, InternLM2, Qwen3-Next.

A group holds some rows of each part; the module is groups one below the other. How many there are only the
config of the model says, or, where there is one group, the sizes of the parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from loramerge.adapters.late import late
from loramerge.formats.models.projections import Rows

Spans = list[list[slice]]

_ROWS: Sequence[tuple[str, Rows, re.Pattern[str]]] = (  # a module, its rows in a model of such a name
    ("c_attn", "equal", late(r"(distil)?gpt-?2|dialogpt|qwen-(1_8|7|14|72)b", re.IGNORECASE)),
    ("c_attn", "query", late(r"(gpt_bigcode-)?santacoder|starcoder(base|plus)?($|-)", re.IGNORECASE)),
    ("query_key_value", "query", late(r"chatglm[23]-|falcon-7b", re.IGNORECASE)),
)


def rows(whole: str, base: str) -> Rows | None:
    """How the rows lie in a model of this name, where that needs no more than the sizes of the parts.

    >>> rows("c_attn", "openai-community/gpt2"), rows("query_key_value", "EleutherAI/pythia-70m")
    ('equal', None)
    """
    last = base.rstrip("/").rpartition("/")[2]
    return next((kind for name, kind, model in _ROWS if name == whole and model.match(last)), None)


def spans(whole: str, model: Mapping[str, Any], outs: int) -> Spans | None:
    """Which rows of a module of so many are each part, by the config of its model; None if it does not tell.

    >>> spans("query_key_value", {"model_type": "bloom", "n_head": 2}, 6)
    [[slice(0, 1, None), slice(3, 4, None)], [slice(1, 2, None), slice(4, 5, None)], [slice(2, 3, None), slice(5, 6, None)]]
    """  # noqa: E501
    found = _groups(whole, model, outs)
    if found is None:
        return None
    count, widths = found
    if count < 1 or min(widths) < 1 or count * sum(widths) != outs:
        return None
    parts = [_every(count, widths, i) for i in range(len(widths))]
    if whole == "in_proj_qkvz":  # all q, all k and all v are one part
        return [[*parts[0], *parts[1], *parts[2]], parts[3]]
    return parts


def _every(count: int, widths: Sequence[int], part: int) -> list[slice]:
    start, height = sum(widths[:part]), sum(widths)
    return [slice(g * height + start, g * height + start + widths[part]) for g in range(count)]


def _groups(whole: str, model: Mapping[str, Any], outs: int) -> tuple[int, list[int]] | None:
    """(groups, rows of each part in one)."""
    kind, heads = model.get("model_type"), _number(model, "num_attention_heads", "n_head")
    if whole in ("in_proj_qkvz", "in_proj_ba"):
        return _linear(whole, model)
    if kind in ("gpt2", "qwen") and whole == "c_attn":
        return 1, [outs // 3] * 3
    if not heads:
        return None
    each = heads, [outs // (3 * heads)] * 3
    if kind in ("gpt_neox", "bloom"):
        return each
    if kind == "falcon" and model.get("new_decoder_architecture"):
        return _grouped(outs, heads, _number(model, "num_kv_heads") or heads)
    if kind == "internlm2":
        return _grouped(outs, heads, _number(model, "num_key_value_heads") or heads)
    if kind in ("falcon", "gpt_bigcode"):
        return _shared(outs, heads, 1) if model.get("multi_query", True) else each
    if kind == "chatglm":
        own = _number(model, "multi_query_group_num") or heads
        return _shared(outs, heads, own) if model.get("multi_query_attention") else each
    return None


def _grouped(outs: int, heads: int, groups: int) -> tuple[int, list[int]]:
    """Each key and value below the queries that share it."""
    size = outs // (heads + 2 * groups)
    return groups, [heads // groups * size, size, size]


def _shared(outs: int, heads: int, groups: int) -> tuple[int, list[int]]:
    """All queries, all keys, all values."""
    size = outs // (heads + 2 * groups)
    return 1, [heads * size, groups * size, groups * size]


def _linear(whole: str, model: Mapping[str, Any]) -> tuple[int, list[int]] | None:
    keys, key = _number(model, "linear_num_key_heads"), _number(model, "linear_key_head_dim")
    values, value = _number(model, "linear_num_value_heads"), _number(model, "linear_value_head_dim")
    if not (keys and key and values and value) or values % keys:
        return None
    ratio = values // keys
    return keys, [key, key, ratio * value, ratio * value] if whole == "in_proj_qkvz" else [ratio, ratio]


def _number(model: Mapping[str, Any], *names: str) -> int:
    """A size that the config says; 0 if it says none."""
    found = next((model[name] for name in names if name in model), 0)
    return found if isinstance(found, int) and not isinstance(found, bool) and 0 < found < 2**20 else 0
