"""vLLM: `--enable-lora`, `LoRARequest`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from loramerge.consumers.consumer import ELSEWHERE, LANGUAGE, Consumer
from loramerge.consumers.facts import SCALING, Facts
from loramerge.consumers.finding import Finding
from loramerge.consumers.peft import scale
from loramerge.consumers.support import VLLM as MODELS
from loramerge.consumers.support import VLLM_INPUTS, VLLM_TOKENS
from loramerge.errors import printable

HEADS = ("classifier", "score")
FACTOR = re.compile(r".*\.(lora_[AB]\.weight|lora_embedding_[AB])", re.DOTALL)


def rules(facts: Facts) -> Iterator[Finding]:
    """What its PEFTHelper and its reader of tensors refuse."""
    heads = facts.config.get("modules_to_save") or []
    odd = [str(head) for head in heads if head not in HEADS] if isinstance(heads, list) else []
    if odd:
        why = f"modules_to_save lists {printable(', '.join(odd))}, and it takes only score and classifier"
        yield VLLM.rejecting(why)
    if not odd and (unread := [key for key in facts.tensors if not _reads(key)]):
        some = f"{printable(unread[0])}{f' and {len(unread) - 1} more' if len(unread) > 1 else ''}"
        yield VLLM.rejecting(f"it takes no tensor such as {some}")
    yield from VLLM.unadapted(facts)
    yield from _experts(facts.of_kind("expert"))
    yield from _tokens(facts)


def _reads(key: str) -> bool:
    """It refuses every other tensor."""
    return FACTOR.fullmatch(key) is not None or VLLM.keeps(key)


def _tokens(facts: Facts) -> Iterator[Finding]:
    """Whether embeddings and heads take adapters differs between its models."""
    classes = {MODELS.named(name) for name in facts.classes}
    for name in ("embed_tokens", "lm_head"):
        able = VLLM_TOKENS | VLLM_INPUTS if name == "embed_tokens" else VLLM_TOKENS
        if classes and not classes & able and (places := [p for p in facts.ranks if p.endswith(name)]):
            whose = printable(" or ".join(facts.classes), 80)
            yield VLLM.rejecting(f"of {whose} it adapts no {name} ({printable(places[0])})", ELSEWHERE)


def _experts(places: list[str]) -> Iterator[Finding]:
    """It stacks both parameters of a module of experts, and asserts that they are there."""
    for home in sorted({place.rpartition(".")[0] for place in places}):
        own = {place.rpartition(".")[2] for place in places if place.rpartition(".")[0] == home}
        if lacking := sorted({"gate_up_proj", "down_proj"} - own):
            why = f"of {printable(home)} it wants gate_up_proj and down_proj, and {lacking[0]} is not there"
            yield VLLM.rejecting(why, ELSEWHERE)
            return


VLLM = Consumer(
    "vllm",
    "vLLM",
    "0.33.0",
    ("peft",),
    True,
    scale,
    rules,
    formats=("peft",),
    asked=LANGUAGE,
    rejects=frozenset(
        "use_dora lora_bias bias init_lora_weights alora_invocation_tokens layer_replication use_bdlora "
        "use_qalora enable_lora".split()
    ),
    needs=("r", "lora_alpha", "target_modules"),
    reads=SCALING,
    beside={
        "`score`, `classifier`": r"(.*\.)?(score|classifier)\.(weight|bias)",
        "a `base_layer` of `embed_tokens`, `lm_head`": r".*\.(embed_tokens|lm_head)\.base_layer\.weight",
    },
    lacks=("conv",),
    models=MODELS,
    max_rank=16,
    rank_option="--max-lora-rank",
    rank_choices=(1, 8, 16, 32, 64, 128, 256, 320, 512),
    remarks="refuses other tensors, and keys with an adapter's name",
)
