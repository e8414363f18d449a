"""SGLang: `--lora-paths`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from loramerge.consumers.consumer import LANGUAGE, Consumer
from loramerge.consumers.facts import Facts, Module
from loramerge.consumers.finding import Finding
from loramerge.consumers.support import SGLANG as MODELS
from loramerge.errors import printable

LAYER = re.compile(r"layers\.\d+\.")
OTHERS = "serve it with vLLM or PEFT, or leave these modules out with --exclude"
MISSING = "serve it with vLLM, or merge it with an adapter that has them"
SIZED = frozenset("q_proj k_proj v_proj qkv_proj o_proj gate_proj up_proj gate_up_proj down_proj".split())
ALL = ("serve it with vLLM or PEFT", "use PEFT")  # without and with convolutions
WORDS = ("embed_tokens", "lm_head")


def scale(config: Mapping[str, Any], module: Module) -> float:
    """lora_alpha / r of the config, for every module."""
    return float(config["lora_alpha"]) / float(config["r"])


def rules(facts: Facts) -> Iterator[Finding]:
    """What it cannot stack, and what it never looks at."""
    yield from _settings(facts)
    yield from _ranks(facts)
    yield from _stacked(facts)
    yield from _unseen(facts)
    yield from _others(facts)
    yield from _unsized(facts)


def _settings(facts: Facts) -> Iterator[Finding]:
    wanted = facts.config.get("target_modules")
    if facts.folder and not isinstance(wanted, list) and wanted not in ("all", "all-linear"):
        why = f"target_modules must be a list of names, and is {printable(repr(wanted), 60)}"
        yield SGLANG.rejecting(why)
    if "added_tokens.json" in facts.beside:
        yield SGLANG.rejecting(
            "added_tokens.json lists tokens, unless the base model has all of them already",
            "remove added_tokens.json from the folder if the adapter did not train them",
        )


def _ranks(facts: Facts) -> Iterator[Finding]:
    """Its buffers have config.r rows for every module."""
    r = facts.config.get("r")
    if r is not None and (odd := {path: rank for path, rank in facts.ranks.items() if rank != r}):
        path, rank = next(iter(odd.items()))
        why = f"it wants rank {printable(r)} in every module, and {printable(path)} has {rank}"
        yield SGLANG.rejecting(why)


def _stacked(facts: Facts) -> Iterator[Finding]:
    """It stacks q, k, v of a layer, and gate with up."""
    siblings: dict[str, set[str]] = defaultdict(set)
    for path in filter(_layer, facts.ranks):
        parent, _, last = path.rpartition(".")
        siblings[parent].add(last)
    for parent, names in siblings.items():
        have = names & {"q_proj", "k_proj", "v_proj"}
        if have and not have >= {"q_proj", "v_proj"}:
            lacks = " and ".join(sorted({"q_proj", "v_proj"} - have))
            why = (
                f"it stacks q, k and v, and {printable(parent)} has {', '.join(sorted(have))} without {lacks}"
            )
            yield SGLANG.rejecting(why, MISSING)
            return
        if "up_proj" in names and "gate_proj" not in names:
            why = f"it stacks gate and up, and {printable(parent)} has up_proj without gate_proj"
            yield SGLANG.rejecting(why, MISSING)
            return


def _unseen(facts: Facts) -> Iterator[Finding]:
    listed = facts.config.get("target_modules")
    names = {str(each).rpartition(".")[2] for each in listed} if isinstance(listed, list) else set(WORDS)
    for word in WORDS:
        if word not in names and (keys := [p for p in facts.ranks if p.endswith(word) and not _layer(p)]):
            what = f"{printable(keys[0])}, which target_modules does not list"
            yield SGLANG.ignoring(what)
    outside = [p for p in facts.ranks if not _layer(p) and not p.endswith(WORDS)]
    if outside:
        share = "all" if len(outside) == len(facts.ranks) else f"{len(outside)} of {len(facts.ranks)}"
        yield SGLANG.ignoring(
            f"{share} modules, such as {printable(outside[0])}: it looks for `layers.N.`, embed_tokens and "
            "lm_head only",
            OTHERS if len(outside) < len(facts.ranks) else ALL[bool(facts.of_kind("conv"))],
        )
    yield from SGLANG.unadapted(facts, seen=_layer)


def _others(facts: Facts) -> Iterator[Finding]:
    """Any tensor of a layer that is no lora_A is taken for its lora_B."""
    strange = [k for k in facts.tensors if _layer(k) and not re.search(r"lora_[AB]\b", k)]
    strange = [k for k in strange if not k.endswith((".lora_magnitude_vector", ".lora_B.bias"))]
    if strange:
        why = f"it would take {printable(strange[0])} for a lora_B"
        yield SGLANG.rejecting(why)
    yield from SGLANG.passing_over([key for key in facts.others if not _layer(key)])


def _unsized(facts: Facts) -> Iterator[Finding]:
    """It makes room for layers whose sizes it knows by their names, and stops at others."""
    linear = filter(_layer, facts.of_kind("linear"))
    odd = [path for path in linear if path.rpartition(".")[2] not in SIZED]
    if odd and facts.classes and SGLANG.place(facts):
        yield SGLANG.rejecting(f"it knows no size for layers called {printable(odd[0])}", OTHERS)


def _layer(text: str) -> bool:
    return LAYER.search(f"{text}.") is not None


SGLANG = Consumer(
    "sglang",
    "SGLang",
    "0.5.23",
    ("peft",),
    True,
    scale,
    rules,
    formats=("peft",),
    asked=LANGUAGE,
    rejects=frozenset({"use_dora", "lora_bias", "enable_lora"}),
    needs=("r", "lora_alpha"),
    lacks=("conv", "expert"),
    rank_option="--max-lora-rank",
    shards=None,
    models=MODELS,
    remarks="refuses modules of several ranks, `target_modules` as a pattern, added tokens, q without v, k "
    "or v without q, up without gate; ignores modules outside `layers.N.`",
)
