"""Fused experts: PEFT's target_parameters, whose pairs hold one update for each expert."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from loramerge.adapters.late import late
from loramerge.adapters.target import Layout, Target
from loramerge.errors import IncompatibleError, SourceError, printable
from loramerge.formats.files.views import Reshaped, View, widened
from loramerge.formats.forms.checks import check_blocks, check_float, check_full, unlike
from loramerge.formats.forms.form import Parts
from loramerge.formats.peft.names import WRAPPED
from loramerge.formats.peft.pairs import Pair

# nesting follows the class definition, which no file holds: only names that tell the order are read
ORDER = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")  # as model classes define them

Factors = Mapping[str, Pair]

BASE, GATE_UP = "base_layer", "gate_up_proj"
STACKED = late(  # where exporters stack experts; PEFT nests the names of the two that belong together
    r"(?P<home>.*\bexperts)(?:\.(?P<name>base_layer|gate_up_proj|gate_proj|up_proj|down_proj))?", re.DOTALL
)


def unfold(factors: Factors, config: Mapping[str, Any], rank_of: Callable[[str], int], name: str) -> Factors:
    """The pairs of modules, those of fused experts under the names of their parameters.

    Args:
        rank_of: r of a module name, by the config.

    Raises:
        SourceError, IncompatibleError: the tensors do not have the shapes that the config means.
    """
    factors = {_key(path, pair): pair for path, pair in factors.items()}
    if config.get("enable_lora"):
        return factors
    if wanted := config.get("target_parameters"):
        if not isinstance(wanted, list | set | tuple) or not all(isinstance(each, str) for each in wanted):
            raise SourceError(f"target_parameters of {printable(name)} must be a list of names.")
        whole = config.get("target_modules")
        modules = {str(each) for each in whole} if isinstance(whole, list | set | tuple) else set()
        return _parameters(factors, sorted(wanted), modules, rank_of, name)
    for path, pair in factors.items():
        if pair.target.kind != "expert" and path.endswith((WRAPPED, ".experts")):
            raise IncompatibleError(
                f"{printable(name)} holds a LoRA of fused experts ({printable(path)}), which can be read "
                "only with the adapter_config.json that names its target_parameters: load its folder."
            )
    return factors


def _key(path: str, pair: Pair) -> str:
    """The name that patterns are held against: of experts that an exporter stacked, with the parameter."""
    return pair.target.place if pair.target.kind == "expert" else path


def _parameters(
    pairs: Factors, wanted: list[str], modules: set[str], rank_of: Callable[[str], int], name: str
) -> Factors:
    """PEFT's target_parameters: wrappers nest, so that the innermost parameter has the most `base_layer`s."""
    factors: dict[str, Pair] = {}
    nests: dict[str, int] = {}
    for path in pairs:
        inner = path.replace(WRAPPED, "")
        nests[inner] = max(nests.get(inner, 0), path.count(WRAPPED))
    for path, pair in pairs.items():
        if pair.target.kind == "expert":
            factors[path] = pair
            continue
        inner = path.replace(WRAPPED, "")
        parameters = _ordered(inner, wanted, nests[inner] + 1, name)
        if not parameters or {inner, inner.rpartition(".")[2]} & modules:
            factors[path] = pair
            continue
        parameter = _at_depth(parameters, path.count(WRAPPED), inner, nests[inner], name)
        full = f"{inner}.{parameter}"
        factors[full] = _expert(pair, inner, parameter, rank_of(full), name)
    return factors


def _ordered(path: str, wanted: list[str], count: int, name: str) -> list[str]:
    """The parameters of a module that are targeted, in the order in which it defines them.

    Names with a module are meant for that; those without one for every module that has such a parameter,
    which is known by how many pairs it has: `count`.
    """
    parts = [each.rpartition(".") for each in wanted]
    found = {last for module, _, last in parts if module and f".{path}".endswith(f".{module}")}
    if len(found) < count:
        found |= {last for module, _, last in parts if not module}
    if len(found) > 1 and not found <= set(ORDER):
        raise IncompatibleError(
            f"{printable(name)} adapts several parameters of {printable(path)} "
            f"({printable(', '.join(sorted(found)))}), and their names do not tell in which order: only "
            f"{', '.join(ORDER)} are known."
        )
    return sorted(found, key=lambda each: ORDER.index(each) if each in ORDER else 0)


def _at_depth(parameters: list[str], depth: int, path: str, deepest: int, name: str) -> str:
    if deepest + 1 != len(parameters):
        raise SourceError(
            f"{printable(path)} in {printable(name)} has {deepest + 1} pairs, but target_parameters names "
            f"{len(parameters)} of its parameters."
        )
    return parameters[len(parameters) - 1 - depth]


def _expert(pair: Pair, path: str, parameter: str, rank: int, name: str) -> Pair:
    """``lora_A`` is expert-major (E·r, in), ``lora_B`` expert-minor (out, r·E)."""
    experts, rest = divmod(pair.down.shape[0], rank)
    if rest or not experts:
        raise SourceError(
            f"lora_A of {printable(path)} in {printable(name)} has {pair.down.shape[0]} rows, which are not "
            f"experts of rank {rank}."
        )
    check_blocks(experts, f"{printable(path)} in {printable(name)}")
    if experts == 1 and parameter == "weight":
        return replace(pair, rank=rank)
    target = Target(path, parameter, kind="expert", layout=Layout(blocks=experts))
    return Pair(target, pair.up, pair.down, rank)


def stacked(path: str, parts: Parts, where: str) -> Pair | None:
    """Experts that an exporter stacked: ``lora_A`` (E, r, in), and ``lora_B`` (E, out, r) or (out, r, E).

    None where the module is no such stack.
    """
    stack = STACKED.fullmatch(path) if "experts" in path else None
    if stack is None or not {"up", "down"} <= parts.keys() or len(parts["down"].shape) != 3:
        return None
    up, down = parts["up"], parts["down"]
    for side in (up, down):
        check_float(side, where)
    check_full(where, up, down)
    experts, rank, ins = down.shape
    check_blocks(experts, where)
    if len(up.shape) == 3 and up.shape[0] == experts and up.shape[2] == rank:
        order, outs = (1, 2, 0), up.shape[1]
    elif len(up.shape) == 3 and up.shape[1:] == (rank, experts):
        order, outs = (0, 1, 2), up.shape[0]
    else:
        raise unlike(where, up, down)
    left, right = (outs, rank * experts), (experts * rank, ins)
    name = stack["name"] or "down_proj"
    layout = Layout(blocks=experts)
    target = Target(stack["home"], GATE_UP if name == BASE else name, kind="expert", layout=layout)
    wide, tall = widened(up), widened(down)
    return Pair(
        target,
        View((wide,), left, wide.dtype, lambda array: array.transpose(order).reshape(left)),
        Reshaped(tall, right),
        rank,
    )
