"""The portable PEFT profile: what every consumer loads at the same strength.

One rank for all modules by zero padding, lora_alpha == r so that the scale is 1, no patterns, no rsLoRA.
SGLang, llama.cpp and others silently ignore patterns and rsLoRA.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.base_models import common_base
from loramerge.adapters.target import Target

COPIED = {"auto_mapping": dict, "peft_version": str, "revision": str, "task_type": str}


def config(adapters: Sequence[Adapter], targets: Iterable[Target], rank: int) -> dict[str, Any]:
    """adapter_config.json of the merge. What describes the base is copied where the sources agree."""
    agreed = {key: _agreed([a.config.get(key) for a in adapters]) for key in COPIED}
    copied = {key: each if isinstance(each, COPIED[key]) else None for key, each in agreed.items()}
    if copied["peft_version"] is None:
        del copied["peft_version"]
    return {
        **copied,
        "base_model_name_or_path": common_base(adapters),
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "lora_bias": False,
        "lora_dropout": 0.0,
        "fan_in_fan_out": any(target.layout.fan_in_fan_out for target in targets),
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "modules_to_save": None,
        "target_modules": target_modules(adapters, [t.path for t in targets if t.kind != "expert"]),
        **_where_it_matters(adapters, targets),
    }


def _where_it_matters(adapters: Sequence[Adapter], targets: Iterable[Target]) -> dict[str, Any]:
    """Settings that are written only where an adapter needs them, because most programs do not know them."""
    found: dict[str, Any] = {}
    if experts := {f"{t.path}.{t.parameter}" for t in targets if t.kind == "expert"}:
        found["target_parameters"] = _target_parameters(adapters, experts)
    if replicated := _agreed([a.config.get("layer_replication") for a in adapters]):
        found["layer_replication"] = replicated
    return found


def _target_parameters(adapters: Sequence[Adapter], full: set[str]) -> list[str]:
    """What all sources say, if that means just these parameters; else their full names."""
    said = [sorted(map(str, a.config.get("target_parameters") or [])) for a in adapters]
    ends = defaultdict[str, set[str]](set)
    for name in full:
        for dot in (-1, *(at for at, letter in enumerate(name) if letter == ".")):
            ends[name[dot + 1 :]].add(name)
    meant = [ends.get(each, set[str]()) for each in said[0]]
    met = all(each == said[0] for each in said) and all(meant) and set().union(*meant) == full
    return said[0] if met else sorted(full)


def _agreed(values: list[Any]) -> Any:
    """The value that all sources with an opinion share; None if they do not."""
    said = [value for value in values if value is not None]
    return said[0] if said and all(value == said[0] for value in said) else None


def target_modules(adapters: Sequence[Adapter], paths: Iterable[str]) -> list[str]:
    """A sorted list of names: the last part of the path where that meant exactly these modules in a
    source too, full paths otherwise (a bare suffix could match more modules of the base)."""
    by_suffix, everywhere, meant = _endings(paths), defaultdict[str, set[str]](set), set[str]()
    for adapter in adapters:
        own, listed = _endings(target.path for target in adapter), _listed(adapter)
        for suffix, modules in own.items():
            everywhere[suffix] |= modules
        meant |= {suffix for suffix in own if suffix in listed and own[suffix] == by_suffix.get(suffix)}
    named: set[str] = set()
    for suffix, modules in by_suffix.items():
        named |= {suffix} if suffix in meant and everywhere[suffix] <= modules else modules
    return sorted(named)


def _endings(paths: Iterable[str]) -> dict[str, set[str]]:
    """Last parts of paths, each with the paths that end so."""
    found = defaultdict[str, set[str]](set)
    for path in paths:
        found[path.rpartition(".")[2]].add(path)
    return found


def _listed(adapter: Adapter) -> set[str]:
    """The ends that a source names its modules by; none where something else narrows them."""
    listed = adapter.config.get("target_modules")
    narrowed = any(map(adapter.config.get, ("exclude_modules", "layers_to_transform")))
    return set() if narrowed or not isinstance(listed, list) else {e for e in listed if isinstance(e, str)}


def summary(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a bare file keeps of the config, in its header: enough to load it in PEFT."""
    return {k: v for k, v in values.items() if v not in (None, {}, False)}
