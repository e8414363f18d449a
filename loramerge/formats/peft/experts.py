"""Fused experts: PEFT's target_parameters, whose pairs hold one update for each expert."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from loramerge.adapters.target import Layout, Target
from loramerge.errors import IncompatibleError, SourceError, printable
from loramerge.formats.forms.checks import check_blocks
from loramerge.formats.peft.names import WRAPPED
from loramerge.formats.peft.pairs import Pair

# nesting follows the class definition, which no file holds: only names that tell the order are read
ORDER = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")  # as model classes define them

Factors = Mapping[str, Pair]


def unfold(factors: Factors, config: Mapping[str, Any], rank_of: Callable[[str], int], name: str) -> Factors:
    """The pairs of modules, those of fused experts under the names of their parameters.

    Args:
        rank_of: r of a module name, by the config.

    Raises:
        SourceError, IncompatibleError: the tensors do not have the shapes that the config means.
    """
    if config.get("enable_lora"):
        return factors
    if wanted := config.get("target_parameters"):
        if not isinstance(wanted, list | set | tuple) or not all(isinstance(each, str) for each in wanted):
            raise SourceError(f"target_parameters of {printable(name)} must be a list of names.")
        whole = config.get("target_modules")
        modules = {str(each) for each in whole} if isinstance(whole, list | set | tuple) else set()
        return _parameters(factors, sorted(wanted), modules, rank_of, name)
    for path in factors:
        if path.endswith((WRAPPED, ".experts")):
            raise IncompatibleError(
                f"{printable(name)} holds a LoRA of fused experts ({printable(path)}), which can be read "
                "only with the adapter_config.json that names its target_parameters: load its folder."
            )
    return factors


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
        inner = path.replace(WRAPPED, "")
        parameters = _ordered(inner, wanted, name)
        if not parameters or {inner, inner.rpartition(".")[2]} & modules:
            factors[path] = pair
            continue
        parameter = _at_depth(parameters, path.count(WRAPPED), inner, nests[inner], name)
        full = f"{inner}.{parameter}"
        factors[full] = _expert(pair, inner, parameter, rank_of(full), name)
    return factors


def _ordered(path: str, wanted: list[str], name: str) -> list[str]:
    """The parameters of a module that are targeted, in the order in which it defines them."""
    found = set()
    for each in wanted:
        module, _, parameter = each.rpartition(".")
        if not module or path == module or path.endswith(f".{module}"):
            found.add(parameter)
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
