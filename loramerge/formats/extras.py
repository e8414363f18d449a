"""What to do with tensors that are no low-rank pair: the user decides, and every one of them is named."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loramerge.adapters.adapter import Adapter, Scaled, Tensor
from loramerge.adapters.target import Target
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array
from loramerge.arrays.dtypes import FLOATS
from loramerge.errors import IncompatibleError, UsageError, printable, say
from loramerge.formats import vocabulary
from loramerge.formats.files.safetensors.dtypes import numpy_dtype
from loramerge.formats.files.views import View
from loramerge.formats.peft import beside
from loramerge.formats.peft.keys import bias_key

POLICIES = ("refuse", "first", "average", "drop")

Module = tuple[str, str]  # (role, path)


@dataclass(frozen=True, eq=False, repr=False)
class Kept:
    """What is written beside the pairs.

    Args:
        tensors: by their keys, in the same file.
        apart: (source, key) -> tensor, in a file of its own: they could not be made one.
        config: the settings under which PEFT loads them.
        notes: sentences about what was done.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    apart: Mapping[tuple[str, str], Tensor] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def settle(
    adapters: Sequence[Adapter], weights: Iterable[float], policy: str, targets: Iterable[Target]
) -> Kept:
    """Decide about every tensor beside the pairs, and sum the biases of ``lora_B``.

    Args:
        weights: (T,) as the method uses them.   policy: one of `POLICIES`.
        targets: the modules of the merge.

    Raises:
        UsageError: no such policy.
        IncompatibleError: there are such tensors and the policy is to refuse, or a dtype is not written.
    """
    if policy not in POLICIES:
        raise UsageError(f"{say('extras', policy)} is not one of {', '.join(POLICIES)}.")
    merged = list(targets)
    adapted = {target.path for target in merged}
    adapters = [beside.respelt(adapter, adapted) for adapter in adapters]
    weighed = [(adapter, float(weight)) for adapter, weight in zip(adapters, weights, strict=True)]
    added = _biases(weighed, merged)
    holders = _by_module(adapters)
    if holders and policy == "refuse":
        raise _refused(adapters)
    if holders and policy != "drop":
        check_roles(holders, adapted)
        return _kept(weighed, holders, policy, added)
    config = {"lora_bias": True} if added else {}
    return Kept(added, config=config, notes=(*_dropped(adapters), *limits(config)))


def _by_module(adapters: Sequence[Adapter]) -> dict[Module, dict[int, list[str]]]:
    """(role, module) -> which sources have it, with the keys of its tensors."""
    found: dict[Module, dict[int, list[str]]] = {}
    for place, adapter in enumerate(adapters):
        for key in sorted(adapter.extras):
            module = beside.role(key, adapter), beside.owner(key, adapter) or key
            found.setdefault(module, {}).setdefault(place, []).append(key)
    return dict(sorted(found.items()))


def _kept(
    weighed: Sequence[tuple[Adapter, float]],
    holders: Mapping[Module, Mapping[int, list[str]]],
    policy: str,
    added: dict[str, Tensor],
) -> Kept:
    tensors: dict[str, Tensor] = {}
    apart: dict[tuple[str, str], Tensor] = {}
    knows: dict[str, Adapter] = {}
    notes = []
    for module, places in holders.items():
        sources = [(*weighed[place], keys) for place, keys in places.items()]
        first, _, keys = sources[0]
        reason = _unlike(module, sources) if policy == "average" else ""
        if reason:
            apart |= {(a.name, key): a.extras[key] for a, _, theirs in sources for key in theirs}
        else:
            chosen = sources if policy == "average" else sources[:1]
            put = _total if module[0] == "delta" else _mean
            tensors |= {key: put(key, [(a, weight) for a, weight, _ in chosen]) for key in keys}
            knows |= dict.fromkeys(keys, first)
        notes.append(_note(module, sources, policy, reason))
    for key, tensor in tensors.items():
        _check_written(key, tensor)
    config = {**beside.settings(knows), **({"lora_bias": True} if added else {})}
    return Kept(added | tensors, apart, config, (*notes, *limits(config)))


def check_roles(holders: Iterable[Module], adapted: Set[str]) -> None:
    """PEFT drops a pair beside a module that is saved whole, and fails on one beside token rows.

    Raises:
        IncompatibleError: one of them is trained in two.
    """
    found: dict[str, str] = {}
    for role, path in holders:
        if role not in ("head", "embedding", "tokens"):
            continue
        module = path.removesuffix(".token_adapter")
        inside = [module, *(each for each in adapted if each.startswith(f"{module}."))]
        pairs = role != "embedding" and next((each for each in inside if each in adapted), None)
        other = "as a low-rank pair" if pairs else found.get(module)
        own = "as single token rows" if role == "tokens" else "as a whole"
        if other:
            raise IncompatibleError(
                f"{printable(pairs or module)} is trained {own} in one source and {other} in another, and an "
                f"adapter has one way for each module. Leave the pair out with {say('exclude')}, or what is "
                f"no pair with {say('extras', 'drop')}, or make pairs of all with {say('heads_as_lora')}."
            )
        found[module] = own


def _unlike(module: Module, sources: Sequence[tuple[Adapter, float, list[str]]]) -> str:
    """Why the tensors of a module cannot be averaged; empty if they can."""
    first, _, keys = sources[0]
    for other, _, theirs in sources[1:]:
        if theirs != keys:
            return "they hold other tensors"
        if not all(_like(first.extras[key], other.extras[key], module) for key in keys):
            return "their shapes differ"
        if not all(a.extras[key].dtype in FLOATS for a in (first, other) for key in keys):
            return "they are not floats"
        role: Any = module[0]
        ours, theirs = (beside.meaning(adapter, role, module[1]) for adapter in (first, other))
        if ours != theirs and not (role == "head" and (ours is None or theirs is None)):
            return "their tokens differ" if role == "tokens" else "their labels differ"
    return ""


def _like(first: Tensor, other: Tensor, module: Module) -> bool:
    """Whether two tensors are of one shape, or of two sizes of one vocabulary."""
    return first.shape == other.shape or (
        vocabulary.named(module[1])
        and vocabulary.alike([first.shape[0], other.shape[0]])
        and first.shape[1:] == other.shape[1:]
    )


def _mean(key: str, sources: Sequence[tuple[Adapter, float]]) -> Tensor:
    """The weighted mean, as one tensor; a single source's own tensor as it is."""
    parts = tuple(adapter.extras[key] for adapter, _ in sources)
    if len(parts) == 1:
        return parts[0]
    weights = [weight for _, weight in sources]
    kind = dtypes.widest(part.dtype for part in parts)
    if len({part.shape for part in parts}) > 1:
        return vocabulary.mean(parts, weights, kind)
    total = math.fsum(weights)
    shares = [weight / total if total else 1 / len(weights) for weight in weights]
    return _sum(parts, shares, kind)


def _total(key: str, sources: Sequence[tuple[Adapter, float]]) -> Tensor:
    """The weighted sum, as of the updates of weights; a source without the tensor adds nothing."""
    if len(sources) == 1 and sources[0][1] == 1.0:
        return sources[0][0].extras[key]
    parts = tuple(adapter.extras[key] for adapter, _ in sources)
    return _sum(parts, [weight for _, weight in sources], dtypes.widest(part.dtype for part in parts))


def _sum(parts: tuple[Tensor, ...], factors: Sequence[float], dtype: str) -> Tensor:
    def total(*arrays: Array) -> Array:
        wide = (factor * dtypes.wide(array) for factor, array in zip(factors, arrays, strict=True))
        return np.asarray(sum(wide)).astype(FLOATS[dtype])

    return View(parts, parts[0].shape, dtype, total, 4 * 8 * math.prod(parts[0].shape), alike=True)


def _biases(weighed: Sequence[tuple[Adapter, float]], targets: Sequence[Target]) -> dict[str, Tensor]:
    """Σ w · scale · bias of every module; PEFT then wants one in each."""
    if not any(adapter.biases for adapter, _ in weighed):
        return {}
    if odd := [t for t in targets if t.kind not in ("linear", "conv")]:
        raise IncompatibleError(
            f"PEFT has no lora_bias beside an adapted {odd[0].kind} ({printable(odd[0])}): merge these "
            f"modules by themselves, with {say('only')} and {say('exclude')}."
        )
    found: dict[str, Tensor] = {}
    for target in targets:
        there = [(a.biases[_bias(target)], w) for a, w in weighed if _bias(target) in a.biases]
        found[bias_key(target)] = _added(there) if there else _zeros(target, weighed)
    return found


def _bias(target: Target) -> Target:
    return Target(target.path, "bias")


def _added(there: Sequence[tuple[Scaled, float]]) -> Tensor:
    parts = tuple(each.tensor for each, _ in there)
    if len({part.shape for part in parts}) > 1:
        raise IncompatibleError("The biases of one module differ in shape: the base models differ.")
    kind = dtypes.widest([*(part.dtype for part in parts), "F32"])
    return _sum(parts, [each.scale * weight for each, weight in there], kind)


def _zeros(target: Target, weighed: Sequence[tuple[Adapter, float]]) -> Tensor:
    slot = next(a.slots[target] for a, _ in weighed if target in a.slots)
    outs = slot.shape[0] * (target.layout.blocks if target.kind == "conv" else 1)
    return View((), (outs,), "F32", lambda: np.zeros(outs, np.float32))


def _check_written(key: str, tensor: Tensor) -> None:
    if numpy_dtype(tensor.dtype) is None:
        raise IncompatibleError(
            f"{printable(key)} is stored as {tensor.dtype}, which is not written: use "
            f"{say('extras', 'drop')}."
        )


def _refused(adapters: Sequence[Adapter]) -> IncompatibleError:
    adapter = next(a for a in adapters if a.extras)
    ways = "first keeps those of the first source that has them, average their weighted mean, drop none"
    if len(adapters) == 1:
        ways = "first keeps them, drop leaves them out"
    return IncompatibleError(
        f"{printable(adapter.name)} holds tensors beside its low-rank pairs ({beside.told(adapter.extras)}), "
        f"which would be lost. Decide with {say('extras')}: {ways}."
    )


def limits(config: Mapping[str, Any]) -> list[str]:
    """What the user of a server should know."""
    named = ", ".join(sorted(config))
    return [f"{named} is set for PEFT; vLLM and llama.cpp load no such adapter"] if config else []


def _dropped(adapters: Sequence[Adapter]) -> list[str]:
    return [
        f"{printable(a.name)}: {len(a.extras)} tensors that are not low-rank pairs are dropped "
        f"({beside.told(a.extras)})"
        for a in adapters
        if a.extras
    ]


def _note(module: Module, sources: Sequence[tuple[Adapter, float, list[str]]], policy: str, why: str) -> str:
    own = {"tokens": "the token rows of", "bias": "the bias of", "delta": "what is added to"}
    name = f"{own.get(module[0], 'the whole of')} {printable(module[1])}"
    names = printable(", ".join(adapter.name for adapter, _, _ in sources))
    if why:
        return f"{name} is kept apart for {names}, since {why}: the merge itself has none"
    if module[0] == "delta" and policy == "average":
        return f"{name} is the weighted sum of {names}, like the updates"
    if len(sources) == 1 or policy == "first":
        return f"{name} is that of {printable(sources[0][0].name)}"
    return f"{name} is the weighted mean of {names}{_trust(module, sources)}"


def _trust(module: Module, sources: Sequence[tuple[Adapter, float, list[str]]]) -> str:
    """What is not known of the tensors that were averaged."""
    said = []
    if module[0] == "head" and beside.is_labelled(module[1]):
        unsaid = [adapter.name for adapter, _, _ in sources if beside.labels(adapter) is None]
        if unsaid:
            said.append(
                f"the labels of {printable(', '.join(unsaid))} are not known, and taken to be the same"
            )
    if len({adapter.extras[key].shape for adapter, _, keys in sources for key in keys[:1]}) > 1:
        said.append("rows that some of them lack are those of the others")
    return "".join(f"; {each}" for each in said)
