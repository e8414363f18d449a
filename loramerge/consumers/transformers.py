"""transformers: `model.load_adapter`."""

from __future__ import annotations

from collections.abc import Iterator

from loramerge.consumers.consumer import LANGUAGE, Consumer
from loramerge.consumers.facts import SCALING, SPECIAL, Facts
from loramerge.consumers.finding import Finding
from loramerge.consumers.peft import TYPES, misnamed, scale


def rules(facts: Facts) -> Iterator[Finding]:
    """What it does not find."""
    yield from misnamed(TRANSFORMERS, facts)


TRANSFORMERS = Consumer(
    "transformers",
    "transformers",
    "5.23.0",
    ("peft",),
    True,
    scale,
    rules,
    formats=("peft",),
    asked=LANGUAGE,
    rejects=frozenset({"enable_lora"}),
    heeds=frozenset(SPECIAL) - {"enable_lora"},
    reads=SCALING,
    beside={"everything": ".*"},
    types=TYPES,
    remarks="ignores keys with an adapter's name",
)
