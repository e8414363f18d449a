"""PEFT: `PeftModel.from_pretrained`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loramerge.consumers.consumer import Consumer, Finding
from loramerge.consumers.facts import SPECIAL, Facts, Module
from loramerge.formats.config import scales
from loramerge.formats.names import PREFIX

TYPES = frozenset(  # peft.PeftType of 0.21.2
    "ADALORA ADAMSS ADAPTION_PROMPT ARROW BEFT BOFT C3A CARTRIDGE CPT DEFT DELORA FOURIERFT FROD GLORA "
    "GRALORA HIRA HRA IA3 LILY LN_TUNING LOHA LOKR LORA MISS MULTITASK_PROMPT_TUNING OFT OSF PEANUT POLY "
    "PREFIX_TUNING PROMPT_TUNING PSOFT PVERA P_TUNING RANDLORA ROAD SHADOW SHIRA SUPERTUNING TINYLORA "
    "TRAINABLE_TOKENS UNILORA VBLORA VERA WAVEFT XLORA".split()
)


def scale(config: Mapping[str, Any], module: Module) -> float:
    """alpha / r, or alpha / √r for rsLoRA; both as the patterns say for this module."""
    return scales(config, "adapter_config.json").scale(module.place)


def rules(facts: Facts) -> Iterator[Finding]:
    """What it does not find."""
    yield from misnamed(PEFT, facts)


def misnamed(consumer: Consumer, facts: Facts) -> Iterator[Finding]:
    """Keys that it does not find in the model: it warns of missing keys, and goes on without them."""
    odd = [key for key, name in facts.names.items() if name.adapter or not name.prefixed]
    if odd:
        what = "an adapter's name in them" if facts.names[odd[0]].adapter else f"no {PREFIX.rstrip('.')}"
        share = "all" if len(odd) == len(facts.names) else f"{len(odd)} of {len(facts.names)}"
        yield consumer.ignoring(f"{share} factors, whose keys have {what}", facts.combine(consumer.name))


PEFT = Consumer(
    "peft",
    "PEFT",
    "0.21.2",
    ("peft",),
    True,
    scale,
    rules,
    rejects=frozenset({"enable_lora"}),
    heeds=frozenset(SPECIAL),
    patterns=True,
    types=TYPES,
)
