"""Which tensors of a file form a low-rank pair, of what kind, and which do not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from loramerge.adapters.adapter import Slot, Tensor
from loramerge.adapters.target import Kind, Layout, Target
from loramerge.arrays.dtypes import FLOATS
from loramerge.errors import IncompatibleError, SourceError, printable
from loramerge.formats.files.views import SMALL_FLOATS, Shared, View, every, matrix, rows, widened
from loramerge.formats.peft.names import FOREIGN, OTHER, PREFIX, Name, alpha_of, parse, unmarked

MAX_BLOCKS = 10_000
BASE, GATE_UP = "base_layer", "gate_up_proj"
STACKED = re.compile(  # where exporters stack experts; PEFT nests the names of the two that belong together
    r"(?P<home>.*\bexperts)(?:\.(?P<name>base_layer|gate_up_proj|gate_proj|up_proj|down_proj))?", re.DOTALL
)
Parts = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two stored factors as matrices, before they are told apart into modules.

    Args:
        target: the parameter; of all blocks, where several share the pair.
        up: (out, rank).   down: (rank, in). Larger where several blocks share the pair.
        rank: what the config calls r.
    """

    target: Target
    up: Tensor
    down: Tensor
    rank: int

    def slots(self, scale: float, fan_in_fan_out: bool) -> Iterator[tuple[Target, Slot]]:
        """The updates in it: one, or one for each block."""
        layout = replace(self.target.layout, fan_in_fan_out=fan_in_fan_out)
        whole, blocks = replace(self.target, layout=layout), layout.blocks
        if blocks == 1:
            yield whole, Slot(self.up, self.down, scale)
            return
        up, down = Shared(self.up), Shared(self.down)
        for block in range(blocks):
            left = every(up, block, blocks) if whole.kind == "expert" else rows(up, block, blocks)
            yield replace(whole, index=block), Slot(left, rows(down, block, blocks), scale)


@dataclass(frozen=True, eq=False)
class Pairs:
    """The tensors of a file, sorted by what they are.

    Args:
        factors: name of a module, as the patterns of its config see it -> its pair.
        biases: module path -> what is added to its bias, before the scale.
        alphas: module path -> scalar tensor.
        extras: the rest, under PEFT's full names.
        adaptive: module path -> the factors of AdaLoRA, by part.
        oddities: sentences about how they are named.
    """

    factors: Mapping[str, Pair]
    biases: Mapping[str, Tensor]
    alphas: Mapping[str, Tensor]
    extras: Mapping[str, Tensor]
    adaptive: Mapping[str, Parts] = field(default_factory=dict)
    oddities: tuple[str, ...] = ()


def sort_tensors(tensors: Mapping[str, Tensor], name: str) -> Pairs:
    """Find the pairs by their names and check their shapes.

    Raises:
        SourceError: a partner is missing, or the two do not share a rank.
        IncompatibleError: a LoRA tensor of a layout that is not read, or no pair at all.
    """
    names = {key: found for key in tensors if (found := parse(key))}
    _refuse(FOREIGN, tensors, name)
    modules = _by_module(names, tensors, name)
    alphas, extras = _others({k: t for k, t in tensors.items() if k not in names}, names, modules)
    _refuse(OTHER, extras, name)
    if not modules:
        some = ", ".join(printable(key, 40) for key in list(extras)[:3]) or "no tensors"
        raise IncompatibleError(f"{printable(name)} holds no LoRA pair ({some}): it is no LoRA adapter.")
    adaptive = {path: parts for path, parts in modules.items() if any(p.startswith("svd_") for p in parts)}
    return Pairs(
        {path: _pair(path, modules[path], name) for path in sorted(modules.keys() - adaptive.keys())},
        {path: widened(parts["bias"]) for path, parts in modules.items() if "bias" in parts},
        alphas,
        extras,
        adaptive,
        tuple(_oddities(names.values(), name)),
    )


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
            f"{printable(name)} holds several adapters in one file ({printable(', '.join(several))}): save "
            "each of them by itself."
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


def _oddities(names: Iterable[Name], name: str) -> list[str]:
    found = list(names)
    adapters = {each.adapter for each in found if each.adapter}
    odd = [f"its keys hold the adapter name {printable(each)}" for each in adapters]
    return odd + (["its keys lack the prefix base_model.model"] if not all(e.prefixed for e in found) else [])


def _pair(path: str, parts: Parts, name: str) -> Pair:
    embedding = "embedding_A" if "embedding_A" in parts or "embedding_B" in parts else ""
    sides = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    where = f"{printable(path)} in {printable(name)}"
    for side in sides:
        if side not in parts:
            raise SourceError(f"lora_{side} of {where} is missing: the file was cut or badly saved.")
        check_float(parts[side], f"lora_{side} of {where}")
    down, up = (parts[side] for side in sides)
    if len(down.shape) == 3 and (stack := STACKED.fullmatch(path)):
        return _stacked(stack["home"], stack["name"] or "down_proj", up, down, where)
    if len(down.shape) == 2 and up.shape[2:] == (1,):  # PEFT 0.2's fused layout: a convolution over parts
        check_full(where, up, down)
        return Pair(Target(path), matrix(widened(up)), widened(down), up.shape[1])
    if len(up.shape) != len(down.shape) or not 2 <= len(up.shape) <= (2 if embedding else 5):
        raise _unlike(up, down, where)
    groups = _groups(up, down, where)
    layout = Layout(kernel=down.shape[2:], blocks=groups)
    kind: Kind = "embedding" if embedding else "conv" if len(down.shape) > 2 else "linear"
    left, right = (matrix(widened(tensor)) for tensor in (up, down))
    return Pair(Target(path, kind=kind, layout=layout), left, right, down.shape[0])


def _stacked(home: str, name: str, up: Tensor, down: Tensor, where: str) -> Pair:
    """Experts that an exporter stacked: ``lora_A`` (E, r, in), and ``lora_B`` (E, out, r) or (out, r, E)."""
    check_full(where, up, down)
    experts, rank, ins = down.shape
    check_blocks(experts, where)
    if len(up.shape) == 3 and up.shape[0] == experts and up.shape[2] == rank:
        order, outs = (1, 2, 0), up.shape[1]
    elif len(up.shape) == 3 and up.shape[1:] == (rank, experts):
        order, outs = (0, 1, 2), up.shape[0]
    else:
        raise _unlike(up, down, where)
    left, right = (outs, rank * experts), (experts * rank, ins)
    target = Target(home, GATE_UP if name == BASE else name, kind="expert", layout=Layout(blocks=experts))
    wide, tall = widened(up), widened(down)
    return Pair(
        target,
        View((wide,), left, wide.dtype, lambda array: array.transpose(order).reshape(left)),
        View((tall,), right, tall.dtype, lambda array: array.reshape(right)),
        rank,
    )


def _groups(up: Tensor, down: Tensor, where: str) -> int:
    """How many groups a convolution has: `up` then sees only its group's part of the rank."""
    check_full(where, up, down)
    groups, rest = divmod(down.shape[0], up.shape[1])
    if rest or not groups or not _fits(up, groups):
        raise _unlike(up, down, where)
    check_blocks(groups, where)
    return groups


def _fits(up: Tensor, groups: int) -> bool:
    if len(up.shape) == 2:
        return groups == 1
    return up.shape[0] % groups == 0 and set(up.shape[2:]) == {1}


def _unlike(up: Tensor, down: Tensor, where: str) -> SourceError:
    return SourceError(
        f"lora_B {list(up.shape)} and lora_A {list(down.shape)} of {where} do not share a rank."
    )


def check_full(where: str, *tensors: Tensor) -> None:
    """No dimension may be zero.

    Raises:
        SourceError: one is.
    """
    if any(0 in tensor.shape for tensor in tensors):
        raise SourceError(f"lora_A or lora_B of {where} is empty.")


def check_blocks(count: int, where: str) -> None:
    """A stored pair is taken apart into as many updates as it says: no small file may say millions.

    Raises:
        IncompatibleError: it does.
    """
    if count > MAX_BLOCKS:
        raise IncompatibleError(
            f"The factors of {where} mean {count} experts or groups, and {MAX_BLOCKS} is the limit."
        )


def check_float(tensor: Tensor, what: str) -> None:
    """Factors must be of a float type that is read.

    Raises:
        IncompatibleError: it is none.
    """
    if tensor.dtype not in (*FLOATS, *SMALL_FLOATS):
        raise IncompatibleError(f"{what} is stored as {tensor.dtype}; save it as float32 or bfloat16.")
