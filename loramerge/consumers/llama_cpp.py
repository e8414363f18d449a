"""llama.cpp: `convert_lora_to_gguf.py`, then `--lora`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from loramerge.consumers.consumer import LANGUAGE, Consumer
from loramerge.consumers.facts import Facts, Module
from loramerge.consumers.finding import Finding
from loramerge.consumers.support import LLAMA_CPP as MODELS
from loramerge.errors import printable

GPT2 = "GPT2LMHeadModel"
CONV1D = re.compile(r"\bc_(attn|proj|fc)$")
FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")


def scale(config: Mapping[str, Any], module: Module) -> float:
    """lora_alpha of the config over the rank of the tensors; 1 if it is 0."""
    alpha = float(config["lora_alpha"])
    return alpha / module.rank if alpha else 1.0


def rules(facts: Facts) -> Iterator[Finding]:
    """What its converter stops at."""
    yield from LLAMA_CPP.unadapted(facts)
    ours = any(MODELS.named(name) == GPT2 for name in facts.classes)
    if turned := [path for path in facts.ranks if CONV1D.search(path)] if ours else []:
        # A file with both factors exchanged would come out right. But PEFT would load its square layers, and
        # turn them, without a word; and a converter that is mended would do the same. So none is written.
        why = (
            "its converter turns the Conv1D layers of GPT-2 as those of the base, so their updates come out "
            f"transposed ({printable(turned[0])})"
        )
        yield LLAMA_CPP.rejecting(why, "add it to its base model with `loramerge fuse`, and convert that")
    if strange := [key for key in facts.tensors if not _taken(key)]:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        why = f"its converter stops at {printable(strange[0])}{more}"
        yield LLAMA_CPP.rejecting(why)


def _untold(facts: Facts) -> str:
    """Its converter drops a head that is tied to the embedding, and then stops at its adapter."""
    if heads := [path for path in facts.ranks if path.endswith("lm_head")]:
        return f"its converter stops at {printable(heads[0])} if the model ties its embeddings"
    return ""


def _taken(key: str) -> bool:
    return any(part in key for part in FACTORS) or LLAMA_CPP.keeps(key)


LLAMA_CPP = Consumer(
    "llama.cpp",
    "llama.cpp",
    "of llama-cpp-python 0.3.36",
    ("peft",),
    True,
    scale,
    rules,
    formats=("peft",),
    asked=LANGUAGE,
    rejects=frozenset({"use_dora", "lora_bias", "enable_lora"}),
    needs=("lora_alpha",),
    heeds=frozenset({"alora_invocation_tokens"}),
    beside={"norms": r".*(_layernorm|\.norm).*", "a `base_layer`": r".*\.base_layer\.weight.*"},
    lacks=("conv", "expert"),
    models=MODELS,
    untold=_untold,
    remarks="its converter stops at other tensors, and at keys with an adapter's name",
)
