"""What the programs that load adapters would do with one: refuse it, scale it wrongly, ignore a part."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.adapter import Adapter, Tensor
from loramerge.consumers import Facts, Finding, Module, find
from loramerge.errors import IncompatibleError, LoramergeError, UsageError
from loramerge.formats import load, portable
from loramerge.formats.keys import common_rank, own_ranks
from loramerge.formats.names import WEIGHTS, alpha_of
from loramerge.formats.output import Outline
from loramerge.formats.peft import PICKLES
from loramerge.formats.raw import Raw, look
from loramerge.target import Target

DOWN = re.compile(
    r"(?P<stem>.+?)(\.lora_down|\.lora_A|_lora\.down|\.lora\.down)(\.default)?\.weight", re.DOTALL
)
COMPONENT = re.compile(r"^(unet|transformer|text_encoder)(_\d)?\.")


def check(
    source: str | Path | Adapter,
    consumer: str,
    *,
    max_rank: int | None = None,
    allow_pickle: bool = False,
) -> list[Finding]:
    """What a consumer would do with an adapter other than what was meant; empty if it loads it well.

    Args:
        source: a folder or a file; an `Adapter` made in memory is taken as `save` would write it.
        consumer: peft, transformers, vllm, sglang, llama.cpp, diffusers, comfyui or mlx.
        max_rank: the largest rank that it was told to load; vLLM's own default is 16.
        allow_pickle: as for `load`.

    Raises:
        UsageError: no such consumer, or no possible rank.
        SourceError, IncompatibleError: as `load`, for files that cannot be read at all.

    >>> [finding.sentence for finding in check("fixtures/a.safetensors", "vllm")]
    ['vLLM rejects it: it loads a folder with an adapter_config.json, and this is one file.']
    """
    if max_rank is not None and max_rank < 1:
        raise UsageError(f"max_rank={max_rank} must be at least 1.")
    return find(consumer).findings(facts_of(source, allow_pickle), max_rank)


def facts_of(source: str | Path | Adapter, allow_pickle: bool = False) -> Facts:
    """What consumers look at. Only headers are read, and alpha tensors."""
    if not isinstance(source, Adapter):
        return _of_files(Path(source), str(source) or ".", allow_pickle)
    if files := source.provenance.files:
        place = files[0] if len(files) == 1 else files[0].parent
        return _of_files(place, str(place), allow_pickle=True)
    return _of_memory(source)


def of_outline(outline: Outline, path: str) -> Facts:
    """The same of a merge that is not written yet: its scales are folded into ``lora_B``."""
    units, dialect = {target: outline.width(target) for target in outline.shapes}, outline.dialect
    beside = dialect.sidecars(outline.widths(), outline.config)
    return Facts(
        path,
        dialect.weights is not None,
        next(iter(beside.values()), {}),
        {key: shape for key, (_, shape) in outline.layout().items()},
        modules=_modules(units, dict.fromkeys(outline.shapes, 1.0), {}),
        weights=dialect.weights or WEIGHTS,
    )


def _of_memory(adapter: Adapter) -> Facts:
    shapes = {target: slot.shape for target, slot in adapter.slots.items()}
    rank = common_rank({target: slot.rank for target, slot in adapter.slots.items()})
    config = portable.config([adapter], shapes, rank)
    return of_outline(Outline(shapes, rank, adapter.dtype, config, extras=adapter.extras), adapter.name)


def _of_files(place: Path, name: str, allow_pickle: bool) -> Facts:
    raw = look(place, name, allow_pickle)
    facts = Facts(
        name,
        raw.folder,
        raw.config,
        {key: tensor.shape for key, tensor in raw.tensors.items()},
        weights=raw.weights,
        beside=raw.beside,
        options="--allow-pickle" if Path(raw.weights).suffix in PICKLES else "",
    )
    return _understood(facts, raw, allow_pickle)


def _understood(facts: Facts, raw: Raw, allow_pickle: bool) -> Facts:
    """With the modules and the scales that are meant, as far as loramerge reads them."""
    if facts.dialect != "peft":
        facts = replace(facts, modules=_of_pipelines(raw))
    try:
        adapter = load(raw.place, allow_pickle=allow_pickle)
    except IncompatibleError as error:
        if facts.modules:
            return replace(facts, unread=str(error))
        return _without_scales(replace(facts, unread=str(error)), raw, allow_pickle)
    except LoramergeError as error:
        return replace(facts, unread=str(error))
    if facts.dialect != "peft":
        return replace(facts, beyond=tuple(adapter.extras))
    scales = {target: slot.scale for target, slot in adapter.slots.items()}
    units = {target: slot.rank for target, slot in adapter.slots.items()}
    return replace(facts, modules=_modules(units, scales, _alphas(raw.tensors)))


def _of_pipelines(raw: Raw) -> tuple[Module, ...]:
    """The modules of a file in the names of diffusers, kohya or ComfyUI, at the scale that those mean."""
    found = []
    for key, tensor in raw.tensors.items():
        if (name := DOWN.fullmatch(key)) and tensor.shape and tensor.shape[0]:
            stored = raw.tensors.get(f"{name['stem']}.alpha")
            alpha = _number(stored) if stored is not None and _one(stored) else None
            module = Module(COMPONENT.sub("", name["stem"]), tensor.shape[0], alpha)
            found.append(replace(module, scale=find("diffusers").scale(raw.config, module)))
    return tuple(found)


def _without_scales(facts: Facts, raw: Raw, allow_pickle: bool) -> Facts:
    """It may be only the alpha that is not known."""
    if raw.folder:
        return facts
    try:
        adapter = load(raw.place, "rank", allow_pickle=allow_pickle)
    except LoramergeError:
        return facts
    units = {target: slot.rank for target, slot in adapter.slots.items()}
    modules = _modules(units, {}, _alphas(raw.tensors))
    return replace(facts, modules=modules, unread="", options=f"{facts.options} --alpha A".strip())


def _modules(
    units: Mapping[Target, int], scales: Mapping[Target, float], alphas: Mapping[str, float]
) -> tuple[Module, ...]:
    """One for each place: experts and groups of one stored pair go together."""
    ranks = own_ranks(units)
    found: dict[str, Module] = {}
    for target in units:
        alpha, scale = alphas.get(target.path), scales.get(target)
        found[target.place] = Module(target.place, ranks[target.place], alpha, scale, target.kind)
    return tuple(found.values())


def _alphas(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Module path -> the number in its alpha tensor."""
    named: dict[str, Any] = {name[0]: tensors[key] for key in tensors if (name := alpha_of(key))}
    return {path: _number(tensor) for path, tensor in named.items() if _one(tensor)}


def _number(tensor: Tensor) -> float:
    return float(np.asarray(tensor.read()).reshape(-1)[0])


def _one(tensor: Tensor) -> bool:
    return int(np.prod(tensor.shape)) == 1
