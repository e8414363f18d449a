"""PEFT: `PeftModel.from_pretrained`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loramerge.consumers.consumer import LANGUAGE, Consumer
from loramerge.consumers.facts import SCALING, SPECIAL, Facts, Module
from loramerge.consumers.finding import Finding
from loramerge.consumers.models import renamed
from loramerge.formats.peft.config import Scaling, scales
from loramerge.formats.peft.names import PREFIX, UNKNOWN

TYPES = frozenset(  # peft.PeftType of 0.21.2
    "ADALORA ADAMSS ADAPTION_PROMPT BEFT BOFT C3A CARTRIDGE CPT DEFT DELORA FOURIERFT FROD GLORA "
    "GRALORA HIRA HRA IA3 LILY LN_TUNING LOHA LOKR LORA MISS MULTITASK_PROMPT_TUNING OFT OSF PEANUT POLY "
    "PREFIX_TUNING PROMPT_TUNING PSOFT PVERA P_TUNING RANDLORA ROAD SHADOW SHIRA SUPERTUNING TINYLORA "
    "TRAINABLE_TOKENS UNILORA VBLORA VERA WAVEFT XLORA".split()
)


def scale(config: Mapping[str, Any], module: Module) -> float:
    """alpha / r, or alpha / √r for rsLoRA; both as the patterns say for this module."""
    return _rule(config).scale(module.place)


_last: list[tuple[Mapping[str, Any], Scaling]] = []


def _rule(config: Mapping[str, Any]) -> Scaling:
    """What a config says of scales, understood once for all modules that ask one after the other."""
    kept = _last[-1:]  # at most one; replaced as a whole, so that threads may ask
    if kept and kept[0][0] is config:
        return kept[0][1]
    rule = scales(config, "adapter_config.json")
    _last[:] = [(config, rule)]
    return rule


def rules(facts: Facts) -> Iterator[Finding]:
    """What it does not find."""
    odd = [key for key, name in facts.names.items() if not name.prefixed]
    if odd:
        what = f"{_share(odd, facts)} factors, whose keys have no {PREFIX.rstrip('.')}"
        yield PEFT.ignoring(what)
    yield from misnamed(PEFT, facts)


def misnamed(consumer: Consumer, facts: Facts) -> Iterator[Finding]:
    """Keys that it does not find in the model: it warns of missing keys, and goes on without them."""
    if odd := [key for key, name in facts.names.items() if name.adapter]:
        what = f"{_share(odd, facts)} factors, whose keys hold the adapter's name"
        yield consumer.ignoring(what)
    yield from _renamed(consumer, facts)


def _renamed(consumer: Consumer, facts: Facts) -> Iterator[Finding]:
    """Modules of vision models that transformers 5 calls otherwise: PEFT finds none of them, and fails."""
    found = renamed(facts.config, facts.architectures, facts.ranks)
    old = "the names of its modules are those before transformers 5, which calls them otherwise"
    mend = "load it with transformers 4, or rename its modules with combine --rename FILE"
    if found:
        yield consumer.rejecting(old, mend)
    elif found is None:
        why = f"{consumer.title} may or may not find its modules: in some models {old}"
        yield Finding(consumer.name, "unknown", f"{why}.", mend)


def _share(keys: Sequence[str], facts: Facts) -> str:
    return "all" if len(keys) == len(facts.names) else f"{len(keys)} of {len(facts.names)}"


PEFT = Consumer(
    "peft",
    "PEFT",
    "0.21.2",
    ("peft",),
    True,
    scale,
    rules,
    formats=("peft",),
    asked=(*LANGUAGE, UNKNOWN),
    rejects=frozenset({"enable_lora"}),
    heeds=frozenset(SPECIAL) - {"enable_lora"},
    reads=SCALING,
    beside={"everything": ".*"},
    types=TYPES,
    remarks="ignores keys without `base_model.model`, or with an adapter's name",
)
