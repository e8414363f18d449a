"""Which tensors of a file belong to which module, and the pairs that come of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from loramerge.adapters.adapter import Slot, Tensor
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, SourceError, printable
from loramerge.formats.files.views import every, rows
from loramerge.formats.forms.form import Base, Parts
from loramerge.formats.forms.refusals import refuse_keys
from loramerge.formats.peft.names import FOREIGN, OTHER, PREFIX, Name, alpha_of, parse, shared_part, unmarked
from loramerge.formats.routers import refuse_routed

ORIGINAL = ".original_module."  # what PEFT keeps of a module that is saved as a whole: the weights before


@dataclass(frozen=True, eq=False, repr=False)
class Pair:
    """Two factors as matrices, before they are told apart into modules.

    Args:
        target: the parameter; of all blocks, where several share the pair.
        up: (out, rank).   down: (rank, in). Larger where several blocks share the pair.
        rank: what the config calls r; None where the tensors do not tell it and there is no config.
        scaled: alpha over rank multiplies it.
    """

    target: Target
    up: Tensor
    down: Tensor
    rank: int | None
    scaled: bool = True

    def slots(self, scale: float, fan_in_fan_out: bool) -> Iterator[tuple[Target, Slot]]:
        """The updates in it: one, or one for each block."""
        layout = replace(self.target.layout, fan_in_fan_out=fan_in_fan_out)
        whole, blocks = replace(self.target, layout=layout), layout.blocks
        scale = scale if self.scaled else 1.0
        if blocks == 1:
            yield whole, Slot(self.up, self.down, scale)
            return
        for block in range(blocks):
            left = every(self.up, block, blocks) if whole.kind == "expert" else rows(self.up, block, blocks)
            yield replace(whole, index=block), Slot(left, rows(self.down, block, blocks), scale)


@dataclass(frozen=True, eq=False, repr=False)
class Stored:
    """The tensors of a file, sorted by what their keys say.

    Args:
        modules: name of a module, as the patterns of its config see it -> its parts.
        alphas: module path -> scalar tensor.
        extras: the rest, under PEFT's full names.
        oddities: sentences about how they are named.
        shared: what forms keep for all modules together, by the names of its parts.
        base: the model that it was trained on, if it is given.
    """

    modules: Mapping[str, Parts]
    alphas: Mapping[str, Tensor]
    extras: Mapping[str, Tensor]
    oddities: tuple[str, ...] = ()
    shared: Parts = field(default_factory=dict)
    base: Base | None = None


class Pairs(NamedTuple):
    """The same with the updates that a config makes of them.

    Args:
        factors: name of a module, as the patterns of its config see it -> its pair.
        biases: module path -> what is added to its bias, before the scale.
        full: the forms of full rank among them, by their words.
    """

    factors: Mapping[str, Pair]
    biases: Mapping[str, Tensor]
    alphas: Mapping[str, Tensor]
    extras: Mapping[str, Tensor]
    oddities: tuple[str, ...] = ()
    full: tuple[str, ...] = ()


def sort_tensors(tensors: Mapping[str, Tensor], name: str, base: Base | None = None) -> Stored:
    """Find the parts of modules by their names.

    Raises:
        SourceError: a part is there twice.
        IncompatibleError: a LoRA tensor of a layout that is not read, or no part at all.
    """
    shared = {part: tensors[key] for key in tensors if (part := shared_part(key))}
    tensors = {key: tensor for key, tensor in tensors.items() if not shared_part(key)}
    own = [key for key in tensors if ORIGINAL in key]
    if trained := next(filter(parse, own), None):
        raise IncompatibleError(
            f"{printable(name)} holds factors of a module that is also saved whole "
            f"({printable(trained, 80)}), and nothing tells which of both counts: save it with one of them."
        )
    tensors = {key: tensor for key, tensor in tensors.items() if ORIGINAL not in key}
    names = {key: found for key in tensors if (found := parse(key))}
    refuse_routed(tensors, name)
    _refuse(FOREIGN, tensors, name)
    modules = _by_module(names, tensors, name)
    alphas, extras = _others({k: t for k, t in tensors.items() if k not in names}, names, modules)
    refuse_keys(extras, "peft", name)
    _refuse(OTHER, extras, name)
    if not modules:
        from loramerge.adapters.whole import no_pair  # an adapter has pairs

        raise no_pair(name, extras)
    oddities = _oddities(names.values())
    if own:
        oddities.append(f"{printable(own[0])} is the base's own beside what was trained, and left out")
    return Stored(modules, alphas, extras, tuple(oddities), shared, base)


def _refuse(table: Iterable[tuple[str, str, str]], keys: Iterable[str], name: str) -> None:
    for pattern, what, help in table:
        for key in keys:
            if re.search(pattern, key):
                raise IncompatibleError(f"{printable(name)} holds {what} ({printable(key, 80)}): {help}.")


def _by_module(names: Mapping[str, Name], tensors: Mapping[str, Tensor], name: str) -> dict[str, Parts]:
    modules: dict[str, dict[str, Tensor]] = {}
    for key, found in names.items():
        parts = modules.setdefault(found.path, {})
        if found.part in parts and not _several(names.values()):
            raise SourceError(f"{printable(name)} holds {printable(key)} twice, under two spellings.")
        parts[found.part] = tensors[key]
    if several := _several(names.values()):
        raise IncompatibleError(
            f"{printable(name)} holds several adapters in one file ({printable(', '.join(several))}): name "
            f"one of them, as in {printable(name)}#{printable(several[0])}."
        )
    return dict(modules)


def _several(names: Iterable[Name]) -> list[str]:
    """The adapter names left in the keys, if there is more than one."""
    adapters = sorted({found.adapter for found in names if found.adapter})
    return adapters if len(adapters) > 1 else []


def _others(
    tensors: Mapping[str, Tensor], names: Mapping[str, Name], modules: Mapping[str, Parts]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The alphas by module path, and the extras; these get the prefix where no factor has it."""
    alphas: dict[str, Tensor] = {}
    extras: dict[str, Tensor] = {}
    plain = bool(names) and not any(found.prefixed for found in names.values())
    for key, tensor in tensors.items():
        found = alpha_of(key)
        if found and (found[1] or found[0] in modules):
            alphas[found[0]] = tensor
        else:
            extras[unmarked(PREFIX + key if plain and not key.startswith(PREFIX) else key)] = tensor
    return alphas, extras


def _oddities(names: Iterable[Name]) -> list[str]:
    found = list(names)
    adapters = {each.adapter for each in found if each.adapter}
    odd = [f"its keys hold the adapter name {printable(each)}" for each in adapters]
    return odd + (["its keys lack the prefix base_model.model"] if not all(e.prefixed for e in found) else [])
