"""What programs make of a routed bundle: PEFT runs one gate, and all others load one adapter at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import islice

from loramerge.adapters.base_models import LAYER
from loramerge.consumers.consumer import Consumer
from loramerge.consumers.facts import Facts, Module
from loramerge.consumers.finding import Finding
from loramerge.errors import printable

RUNS = {"peft": "arrow"}  # consumer -> the gate that it has
TORCH = "run it with loramerge.routing.torch.attach"
MERGED = f"merge it with `loramerge combine`, as every token gets the same weights, or {TORCH}"
AGAIN = "write it anew: `loramerge route BUNDLE --gate arrow -o OTHER`"
SHARED = frozenset({"proj", "projection"})  # ends of names: of linear layers, and of what cuts pictures up
LAYERS = 10**4  # no model repeats more of them; the list of a stranger may say 10¹²
PUT = "call loramerge.routing.torch.put_prototypes(model, bundle), as its README has it"


def examined(consumer: Consumer, facts: Facts, max_rank: int | None = None) -> list[Finding]:
    """All that is to say of an adapter or a bundle; nothing if it is loaded as it was meant."""
    if not facts.experts:
        return consumer.findings(facts, max_rank)
    way = MERGED if facts.steady else TORCH
    if consumer.name not in RUNS:
        why = f"it loads one adapter, and this is a bundle of {len(facts.experts)} under a gate"
        return [consumer.rejecting(why, way, "")]
    found = [each for expert in facts.experts for each in consumer.findings(expert, max_rank)]
    if facts.gate != RUNS[consumer.name]:
        gate = f"the gate {facts.gate}" if facts.gate else "gates that differ between modules"
        return [*found, consumer.ignoring(f"{gate}: it knows {RUNS[consumer.name]} alone", way, "")]
    found += _repeated(consumer, facts)
    return found or [*_unrouted(consumer, facts)] or [*_astray(consumer, facts)]


def _repeated(consumer: Consumer, facts: Facts) -> Iterator[Finding]:
    """It repeats layers each time that it loads an adapter: of the layers that the last time left."""
    maps = [each.config.get("layer_replication") for each in facts.experts]
    if len(maps) < 2 or not maps[0]:
        return
    try:
        once = list(islice((layer for start, end in maps[0] for layer in range(start, end)), LAYERS + 1))
        same = len(once) <= LAYERS and [once[layer] for layer in once] == once
    except (TypeError, ValueError, IndexError):
        same = False
    if not same:
        said = (
            "the layers that layer_replication means: it repeats them anew with each adapter of the bundle, "
            "so that the model ends up with others"
        )
        yield consumer.ignoring(said, f"{TORCH}, on a model whose layers are repeated already", "")


def _unrouted(consumer: Consumer, facts: Facts) -> Iterator[Finding]:
    """Its router goes to every layer of a name, and each must be one that it can weigh."""
    for module in facts.modules:
        last = module.place.rpartition(".")[2]
        if module.kind != "linear":
            why = f"its Arrow weighs linear layers, and {printable(module.place)} is another ({module.kind})"
            yield consumer.rejecting(why, TORCH, "")
        elif last.isdecimal():
            why = (
                f"its router goes to every part of the model whose name ends as {printable(module.place)} "
                f"does, in {last}, and few of these are linear layers"
            )
            yield consumer.rejecting(why, TORCH, "")
        else:
            continue
        return
    yield from _bare(consumer, facts)
    if shared := sorted(SHARED & _by_last(facts).keys()):
        sentence = (
            f"{consumer.title} may or may not run it: its router goes to every part of the model called "
            f"{shared[0]}, and in models that see, one of these is a convolution."
        )
        yield Finding(consumer.name, "unknown", sentence, f"try it, or {TORCH}")


def _bare(consumer: Consumer, facts: Facts) -> Iterator[Finding]:
    """A layer without an adapter, which its router meets all the same, ends in an error at the first token.

    Unless the settings name all layers that end so: then PEFT itself gives each of them a pair of zeros.
    """
    named = {name for expert in facts.experts for name in _unnamed(expert)}
    for name, modules in sorted(_by_last(facts).items()):
        if not named & {module.place for module in modules}:
            continue
        numbers = [int(found["number"]) for each in modules if (found := LAYER.match(each.place))]
        layers = f"in layers {', '.join(map(str, sorted(set(numbers))))} " if numbers else ""
        why = f"its router goes to every layer called {printable(name)}, and the bundle has adapters {layers}"
        if sorted(set(numbers)) != [*range(len(set(numbers)))]:
            yield consumer.rejecting(f"{why}alone", AGAIN, "")
        else:
            sentence = f"{consumer.title} may or may not run it: {why}alone, which may not be all."
            yield Finding(consumer.name, "unknown", sentence, AGAIN)


def _unnamed(expert: Facts) -> set[str]:
    """The places that its settings do not name by the end of their name alone."""
    said, narrowed = expert.config.get("target_modules"), ("exclude_modules", "layers_to_transform")
    listed = said if isinstance(said, list) and not any(map(expert.config.get, narrowed)) else []
    ends = {end for end in listed if isinstance(end, str)}
    return {each.place for each in expert.modules if each.place.rpartition(".")[2] not in ends}


def _by_last(facts: Facts) -> dict[str, list[Module]]:
    found: dict[str, list[Module]] = defaultdict(list)
    for module in facts.modules:
        found[module.place.rpartition(".")[2]].append(module)
    return found


def _astray(consumer: Consumer, facts: Facts) -> Iterator[Finding]:
    """It seeks the directions anew, and misses those whose first two singular values are near each other."""
    if facts.directions is None:
        why = "it seeks the directions of the adapters itself, and the record does not say how near it comes"
        yield Finding(
            consumer.name,
            "unknown",
            f"{consumer.title} may or may not route alike: {why}.",
            f"{PUT}, or {AGAIN}",
        )
        return
    count, off = facts.directions
    if off:
        yield consumer.ignoring(
            f"the exact directions of the gate: it seeks them itself, and {off} of {count} that it finds "
            "point elsewhere, so that tokens go to other adapters",
            PUT,
            "",
        )
