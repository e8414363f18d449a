"""Which model an adapter is for, as far as its files tell: servers have no place for adapters of every model.

A family is told by the class that a config names, by the name of the base, or by the names of its modules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Family:
    """Models of one class.

    Args:
        title: how it is called.   classes: how its classes in transformers begin.
        base: how names of its models look.   modules: how paths in it look, where they tell.
    """

    title: str
    classes: str
    base: str = ""
    modules: str = ""

    def named(self, base: str) -> bool:
        """Whether the name of a base is one of it."""
        last = base.replace("\\", "/").rstrip("/").rpartition("/")[2]
        return bool(self.base) and re.match(self.base, last, re.IGNORECASE) is not None

    def holds(self, path: str) -> bool:
        """Whether a module path is one that only it has."""
        return bool(self.modules) and re.match(self.modules, path) is not None


PLAIN = "plain"  # decoders with the names of Llama, which every server of adapters has a place for
FAMILIES: Mapping[str, Family] = {
    "gpt2": Family(
        "GPT-2", "GPT2", r"(distil)?gpt-?2|dialogpt", r"(transformer\.)?h\.\d+\.(attn\.c_|mlp\.c_)"
    ),
    "bloom": Family("Bloom", "Bloom", r"bloomz?\b"),
    "falcon": Family("Falcon", "FalconFor|FalconModel|RWFor", r"falcon-(rw-)?(1b|7b|11b|40b|180b)"),
    "gptj": Family("GPT-J", "GPTJ", r"gpt-?j\b", r"transformer\.h\.\d+\.(attn\.(q|k|v|out)_proj|mlp\.fc_)"),
    "gpt_neox": Family("GPT-NeoX", "GPTNeoX", r"gpt-neox|pythia|dolly-v2", r"gpt_neox\.layers\."),
    "opt": Family("OPT", "OPT", r"opt-[\d.]+[mb]\b", r"model\.decoder\.layers\.\d+\.(self_attn|fc)"),
    "mpt": Family("MPT", "MPT", r"mpt-\d+b", r"transformer\.blocks\.\d+\.(attn\.Wqkv|ffn\.)"),
    PLAIN: Family(
        "Llama and its kin",
        "Llama|Mistral|Mixtral|Qwen|Gemma|Phi3|Granite|Olmo",
        r"(meta-)?(code)?llama|tinyllama|mi[sx]tral|qwen|gemma|smollm|phi-[34]",
        r"(model\.|language_model\.)*layers\.\d+\.(self_attn\.([qkvo]|qkv)_proj|mlp\.(experts\.(\d+\.)?)?"
        r"(gate|up|down|gate_up)_proj)$",
    ),
}


def family(config: Mapping[str, Any], architectures: Iterable[str], paths: Iterable[str]) -> str | None:
    """The key of the family in `FAMILIES`; None if nothing tells it.

    >>> family({"base_model_name_or_path": "openai-community/gpt2-medium"}, [], [])
    'gpt2'
    >>> family({}, [], ["model.layers.0.self_attn.q_proj"]), family({}, [], ["blocks.0.q"])
    ('plain', None)
    """
    mapping = config.get("auto_mapping")
    said = [*architectures, *([str(mapping.get("base_model_class"))] if isinstance(mapping, Mapping) else [])]
    if said:
        return next((key for key, one in FAMILIES.items() if re.match(one.classes, said[0], re.I)), None)
    base = config.get("base_model_name_or_path")
    if isinstance(base, str) and (found := next((k for k, one in FAMILIES.items() if one.named(base)), None)):
        return found
    listed = list(paths)
    return next((key for key, one in FAMILIES.items() if any(map(one.holds, listed))), None)
