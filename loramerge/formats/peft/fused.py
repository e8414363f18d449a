"""Pairs that need their config to be understood: several updates, or blocks of one, in one stored pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.adapters.target import Layout, Target
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array
from loramerge.errors import IncompatibleError, SourceError, printable
from loramerge.formats.files.views import View
from loramerge.formats.peft.pairs import Pair, Pairs, check_blocks, check_float, check_full

WRAPPED = ".base_layer"
ORDER = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")  # as model classes define them


def unfold(pairs: Pairs, config: Mapping[str, Any], rank_of: Callable[[str], int], name: str) -> Pairs:
    """The pairs with what the config says of fused ones applied.

    Args:
        rank_of: r of a module name, by the config.

    Raises:
        SourceError, IncompatibleError: the tensors do not have the shapes that the config means.
    """
    pairs = replace(pairs, factors={_key(path, pair): pair for path, pair in pairs.factors.items()})
    if enabled := config.get("enable_lora"):
        return _parts_of_rows(pairs, enabled, rank_of, name)
    if wanted := config.get("target_parameters"):
        if not isinstance(wanted, list | set | tuple) or not all(isinstance(each, str) for each in wanted):
            raise SourceError(f"target_parameters of {printable(name)} must be a list of names.")
        whole = config.get("target_modules")
        modules = {str(each) for each in whole} if isinstance(whole, list | set | tuple) else set()
        return _parameters(pairs, sorted(wanted), modules, rank_of, name)
    for path, pair in pairs.factors.items():
        if pair.target.kind == "expert":
            continue
        if path.endswith((WRAPPED, ".experts")):
            raise IncompatibleError(
                f"{printable(name)} holds a LoRA of fused experts ({printable(path)}), which can be read "
                "only with the adapter_config.json that names its target_parameters: load its folder."
            )
        if pair.up.shape[1] * pair.target.layout.blocks != pair.down.shape[0]:
            raise IncompatibleError(
                f"{printable(name)} adapts equal parts of the outputs of {printable(path)} (loralib's "
                "MergedLinear, PEFT's oldest fused layout). Which parts, only enable_lora says: load the "
                'folder with its adapter_config.json, or put {"r": …, "lora_alpha": …, "enable_lora": [true, '
                "false, true]} into a .json file of its name beside it."
            )
    return pairs


def _key(path: str, pair: Pair) -> str:
    """The name that patterns are held against: of experts that an exporter stacked, with the parameter."""
    return pair.target.place if pair.target.kind == "expert" else path


def _parts_of_rows(pairs: Pairs, enabled: Any, rank_of: Callable[[str], int], name: str) -> Pairs:
    """PEFT 0.2's MergedLinear: some of the equal parts of the outputs, each with an r of its own.

    ``lora_A`` (r·k, in) and ``lora_B`` (out·k/n, r[, 1]) are a convolution in k groups: part g of the
    enabled outputs is ``lora_B[part g] @ lora_A[r·g : r·(g+1)]``.
    """
    if not isinstance(enabled, list) or not all(isinstance(on, bool) for on in enabled) or not any(enabled):
        raise SourceError(f"enable_lora of {printable(name)} must be a list of true and false.")
    return replace(
        pairs,
        factors={
            path: pair if _is_whole(pair, enabled) else _spread(pair, enabled, rank_of(path), name)
            for path, pair in pairs.factors.items()
        },
    )


def _is_whole(pair: Pair, enabled: list[bool]) -> bool:
    """Whether it cannot be meant: factors of several parts do not share a rank."""
    return sum(enabled) > 1 and pair.up.shape[1] == pair.down.shape[0]


def _spread(pair: Pair, enabled: list[bool], rank: int, name: str) -> Pair:
    on = [i for i, each in enumerate(enabled) if each]
    stored, rest = divmod(pair.up.shape[0], len(on))
    if rest or pair.up.shape[1] != rank or pair.down.shape[0] != rank * len(on):
        raise SourceError(
            f"lora_B {list(pair.up.shape)} and lora_A {list(pair.down.shape)} of "
            f"{printable(pair.target)} in {printable(name)} do not fit enable_lora {enabled} and r {rank}."
        )
    shape = (stored * len(enabled), rank * len(on))

    def spread(up: Array) -> Array:
        wide = np.zeros(shape, up.dtype)
        for block, part in enumerate(on):
            left = up[block * stored : (block + 1) * stored]
            wide[part * stored : (part + 1) * stored, block * rank : (block + 1) * rank] = left
        return wide

    target = replace(pair.target, kind="linear", layout=Layout())
    return Pair(target, View((pair.up,), shape, pair.up.dtype, spread), pair.down, rank)


def _parameters(
    pairs: Pairs, wanted: list[str], modules: set[str], rank_of: Callable[[str], int], name: str
) -> Pairs:
    """PEFT's target_parameters: wrappers nest, so that the innermost parameter has the most `base_layer`s."""
    factors: dict[str, Pair] = {}
    nests: dict[str, int] = {}
    for path in pairs.factors:
        inner = path.replace(WRAPPED, "")
        nests[inner] = max(nests.get(inner, 0), path.count(WRAPPED))
    for path, pair in pairs.factors.items():
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
    return replace(pairs, factors=factors)


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


def of_adalora(pairs: Pairs, name: str) -> dict[str, Pair]:
    """AdaLoRA as pairs: up = lora_B, down = lora_A · lora_E. A module pruned to rank 0 has none."""
    made = {}
    for path, parts in sorted(pairs.adaptive.items()):
        where = f"{printable(path)} in {printable(name)}"
        if missing := {"svd_A", "svd_B", "svd_E"} - parts.keys():
            raise SourceError(f"lora_{min(missing)[-1]} of {where} is missing: it was cut or badly saved.")
        up, down, sigma = (parts[f"svd_{side}"] for side in "BAE")
        for tensor in (up, down, sigma):
            check_float(tensor, f"AdaLoRA of {where}")
        if up.shape[1:] != down.shape[:1] or sigma.shape != (down.shape[0], 1) or len(down.shape) != 2:
            raise SourceError(f"The three factors of AdaLoRA of {where} do not share a rank.")
        if down.shape[0]:
            check_full(where, up, down)
            made[path] = Pair(Target(path), up, _scaled(down, sigma), down.shape[0])
    return made


def _scaled(down: Tensor, sigma: Tensor) -> Tensor:
    kind = dtypes.widest([down.dtype, sigma.dtype, "F32"])
    wide = dtypes.FLOATS[kind]
    return View((down, sigma), down.shape, kind, lambda a, e: a.astype(wide) * e.astype(wide))
