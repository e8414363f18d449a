"""What programs make of a routed bundle: PEFT runs one gate, and all others load one adapter at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from loramerge.adapters.base_models import LAYER
from loramerge.consumers.consumer import Consumer, Finding
from loramerge.consumers.facts import Facts
from loramerge.errors import printable

RUNS = {"peft": "arrow"}  # consumer -> the gate that it has
TORCH = "run it with loramerge.routing.torch.attach"


def examined(consumer: Consumer, facts: Facts, max_rank: int | None = None) -> list[Finding]:
    """All that is to say of an adapter or a bundle; nothing if it is loaded as it was meant."""
    if not facts.experts:
        return consumer.findings(facts, max_rank)
    if consumer.name not in RUNS:
        why = f"it loads one adapter, and this is a bundle of {len(facts.experts)} under a gate"
        return [consumer.rejecting(why, TORCH, "")]
    found = [each for expert in facts.experts for each in consumer.findings(expert, max_rank)]
    if facts.gate != RUNS[consumer.name]:
        gate = f"the gate {facts.gate}" if facts.gate else "gates that differ between modules"
        found.append(consumer.ignoring(f"{gate}: it knows {RUNS[consumer.name]} alone", TORCH, ""))
    return found or list(_untold(consumer, facts))


def _untold(consumer: Consumer, facts: Facts) -> Iterator[Finding]:
    """Its router goes to every layer of a name, so that a layer without experts ends in an error."""
    for name, numbers in sorted(_layers(facts).items()):
        if numbers != set(range(len(numbers))):
            sentence = (
                f"{consumer.title} may or may not run it: its router goes to every layer called "
                f"{printable(name)}, and the bundle has experts in layers "
                f"{', '.join(map(str, sorted(numbers)))} alone."
            )
            yield Finding(consumer.name, "unknown", sentence, "try it, or " + TORCH)


def _layers(facts: Facts) -> dict[str, set[int]]:
    """The last part of a module's name -> the numbers of the layers that it is in."""
    found: dict[str, set[int]] = defaultdict(set)
    for module in facts.modules:
        if layer := LAYER.match(module.place):
            found[layer["last"]].add(int(layer["number"]))
    return found
