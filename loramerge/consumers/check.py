"""What the programs that load adapters would do with one: refuse it, scale it wrongly, ignore a part."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.adapters.adapter import Adapter, Tensor
from loramerge.adapters.base_models import is_local
from loramerge.adapters.original import one_state
from loramerge.adapters.target import Target
from loramerge.consumers.facts import SPECIAL, Facts, Module
from loramerge.errors import (
    ChangedError,
    EmptyError,
    IncompatibleError,
    LoramergeError,
    SourceError,
    printable,
)
from loramerge.formats.bundles import record_of, task
from loramerge.formats.dialects import FOLDER_FILES, PEFT, named
from loramerge.formats.dialects.grain import placed, twice
from loramerge.formats.dialects.together import named_family, stranger, written_family
from loramerge.formats.files.json import read_object
from loramerge.formats.forms.form import NO_AID, Aid
from loramerge.formats.models.architectures import architectures
from loramerge.formats.output import Outline
from loramerge.formats.peft import portable
from loramerge.formats.peft.alpha import check_ranks
from loramerge.formats.peft.config import scales
from loramerge.formats.peft.keys import common_rank, own_ranks
from loramerge.formats.peft.names import WEIGHTS, alpha_of
from loramerge.formats.peft.pairs import sort_tensors
from loramerge.formats.peft.read import PICKLES
from loramerge.formats.peft.updates import understood
from loramerge.formats.raw import Raw, look
from loramerge.hub.names import HubName, hub_name, inside

MAGNITUDES = re.compile(r".+\.lora_magnitude_vector(?:\.\w+)*", re.DOTALL)


def facts_of(source: str | Path | Adapter, allow_pickle: bool = False, aid: Aid = NO_AID) -> Facts:
    """What consumers look at. Only headers are read, and alpha tensors; of the Hub by range.

    Args:
        aid: what a form needs beside its file, such as its base.
    """
    if isinstance(source, Adapter):
        return _of_adapter(source)
    if (record := record_of(source)) is not None:
        return _of_bundle(source, record)
    if (found := hub_name(source)) is None:
        with one_state():
            raw, path = look(Path(source), str(source) or ".", allow_pickle), str(source) or "."
            if os.path.isdir(path) and not raw.folder and raw.weights not in FOLDER_FILES:
                path = str(raw.place)  # `load` wants such a file by its name
            return _of_raw(replace(raw, aid=aid), path, allow_pickle)
    # By range, never the whole file.
    from loramerge.formats.remote import look_hub, record_there  # for those who name it
    from loramerge.hub.choice import BundleThere

    try:
        raw = replace(look_hub(str(source), found, allow_pickle), aid=aid)
    except BundleThere as there:
        return _of_bundle(source, record_there(found, there.listing), found)
    facts = _of_raw(raw, str(source), allow_pickle)
    return replace(facts, stem=(found.path or found.repo).rpartition("/")[2])


def _of_bundle(place: str | Path, record: Mapping[str, Any], there: HubName | None = None) -> Facts:
    """Those of all its adapters, and of its gate; `there`: where it lies on the Hub."""
    said = record.get("experts")
    tasks = [task(e) for e in range(len(said) if isinstance(said, list) else 0)]
    places = [str(Path(place) / each if there is None else inside(there, each)) for each in tasks]
    experts = tuple(map(facts_of, places))
    if not experts:
        raise SourceError(f"The record of {printable(place)} names no expert.")
    said = record.get("gate")
    gate = str(said.get("name")) if isinstance(said, dict) and not record.get("gates") else ""
    tensors = {
        f"{task(e)}/{key}": shape for e, each in enumerate(experts) for key, shape in each.tensors.items()
    }
    return replace(
        experts[0],
        path=str(place),
        tensors=tensors,
        experts=experts,
        gate=gate,
        steady=isinstance(record.get("weights"), list),
        directions=_directions(record),
    )


def _directions(record: Mapping[str, Any]) -> tuple[int, int] | None:
    """How many prototypes a bundle has, and how many PEFT would miss, as was measured when it was written."""
    said = record.get("prototypes")
    count, off = (said.get("count"), said.get("astray")) if isinstance(said, dict) else (None, None)
    return (count, off) if type(count) is int and type(off) is int else None


def _of_adapter(adapter: Adapter) -> Facts:
    known = adapter.provenance
    if known.peeked and known.hub:
        owner, name, *path = known.hub.split("/")
        return facts_of(str(HubName(f"{owner}/{name}", known.revision, "/".join(path))))
    if not known.files:
        return _of_memory(adapter)
    place = known.files[0] if len(known.files) == 1 else known.files[0].parent
    with one_state(known.originals):
        return _of_raw(look(place, str(place), allow_pickle=True), str(place), allow_pickle=True)


def of_outline(outline: Outline, path: str) -> Facts:
    """The same of a merge that is not written yet: its scales are folded into ``lora_B``."""
    units, dialect = {target: outline.width(target) for target in outline.shapes}, outline.dialect
    families, namings = written_family(dialect, outline.shapes)
    beside = dialect.sidecars(outline.widths(), outline.config)
    return Facts(
        path,
        dialect.weights is not None,
        next(iter(beside.values()), {}),
        {key: shape for key, (_, shape) in outline.layout().items()},
        dialect.name,
        alphas=_alphas(outline.beside()),
        modules=_modules(units, dict.fromkeys(outline.shapes, 1.0), {}),
        beyond=None if dialect.name == PEFT.name else tuple(outline.extras),
        weights=dialect.weights or WEIGHTS,
        families=families,
        namings=namings,
    )


def _of_memory(adapter: Adapter) -> Facts:
    shapes = {target: slot.shape for target, slot in adapter.slots.items()}
    rank = common_rank({target: slot.rank for target, slot in adapter.slots.items()})
    config = portable.config([adapter], shapes, rank)
    return of_outline(Outline(shapes, rank, adapter.dtype, config, extras=adapter.extras), adapter.name)


def _of_raw(raw: Raw, path: str, allow_pickle: bool) -> Facts:
    facts = Facts(
        path,
        raw.folder,
        raw.config,
        {key: tensor.shape for key, tensor in raw.tensors.items()},
        raw.dialect,
        raw.settings if raw.dialect == "diffusers" else {},
        _alphas(raw.tensors),
        weights=raw.weights,
        beside=raw.beside,
        architectures=_architectures(raw),
        options="--allow-pickle" if Path(raw.weights).suffix in PICKLES else "",
    )
    try:
        return _understood(facts, raw.read(None, allow_pickle))
    except EmptyError as error:
        return replace(facts, unread=str(error), empty=True)
    except IncompatibleError as error:
        facts = replace(facts, unread=str(error), plain=_is_plain(facts, raw))
        return _without_scales(facts, raw, allow_pickle)
    except ChangedError:
        raise
    except LoramergeError as error:
        return replace(facts, unread=str(error), broken=True)


def _is_plain(facts: Facts, raw: Raw) -> bool:
    """Whether nothing but special settings, and the magnitudes that one of them means, keeps it from us."""
    if not (raw.folder and any(facts.bent)):
        return False
    config = {key: value for key, value in raw.config.items() if key not in SPECIAL}
    dora = bool(raw.config.get("use_dora"))
    tensors = {k: t for k, t in raw.tensors.items() if not (dora and MAGNITUDES.fullmatch(k))}
    try:
        stored, rule = sort_tensors(tensors, raw.header.name), scales(config, raw.header.name)
        pairs = understood(stored, config, rule, raw.header.name)
        check_ranks(rule, pairs, raw.header.name)
    except ChangedError:
        raise
    except LoramergeError:  # that it is not read has been said with a better reason
        return False
    return True


def _architectures(raw: Raw) -> tuple[str, ...]:
    """The classes that the config.json of the base names: beside the adapter, or where its base lies."""
    base = raw.config.get("base_model_name_or_path")
    places = [raw.place] * ("config.json" in raw.beside)
    places += [Path(base)] if isinstance(base, str) and is_local(base) else []
    for place in places:
        try:
            config = read_object(place / "config.json", "config.json")
        except ChangedError:
            raise
        except (LoramergeError, ValueError):  # it is no part of the adapter, and only helps to know it
            continue
        if said := architectures(config):
            return tuple(said)
    return ()


def _understood(facts: Facts, adapter: Adapter) -> Facts:
    """With the modules and the scales that are meant."""
    families, namings = named_family(adapter)
    strange = "" if families else stranger(adapter)
    facts = replace(
        facts,
        unfit=partial(_unfit, adapter),
        families=families,
        namings=namings,
        stranger=strange,
        twice=tuple(str(each) for each in twice(placed(adapter)) or ()),
        full=adapter.full_rank,
    )
    scales = {target: slot.scale for target, slot in adapter.slots.items()}
    units = {target: slot.rank for target, slot in adapter.slots.items()}
    if facts.dialect == PEFT.name:
        return replace(facts, modules=_modules(units, scales, facts.alphas))
    facts = replace(facts, beyond=tuple(adapter.extras))
    if facts.dialect == "diffusers":
        found = _modules(units, scales, facts.alphas)
        return replace(facts, modules=tuple(map(_in_component, found)))
    alphas = {_path(target): scale * units[target] for target, scale in scales.items()}
    return replace(facts, modules=_modules(units, scales, alphas))  # every reader finds the scale in them


def _in_component(module: Module) -> Module:
    """With the name that it has in its own component."""
    component, _, place = module.place.partition(".")
    return replace(module, place=place, component=component)


def _without_scales(facts: Facts, raw: Raw, allow_pickle: bool) -> Facts:
    """It may be only the alpha that is not known."""
    if raw.folder:
        return facts
    try:
        adapter = raw.read("rank", allow_pickle)
    except ChangedError:
        raise
    except LoramergeError:
        return facts
    units = {target: slot.rank for target, slot in adapter.slots.items()}
    options = f"{facts.options} --alpha A".strip()
    modules, unfit = _modules(units, {}, {}), partial(_unfit, adapter)
    return replace(facts, modules=modules, unread="", unfit=unfit, options=options)


def _unfit(adapter: Adapter, name: str) -> str:
    """Why an adapter has no names in that format; "" if it has."""
    try:
        named(name).adopt(adapter)
    except ChangedError:
        raise
    except LoramergeError as error:
        return str(error)
    return ""


def _modules(
    units: Mapping[Target, int], scales: Mapping[Target, float], alphas: Mapping[str, float]
) -> tuple[Module, ...]:
    """One for each place: experts and groups of one stored pair go together."""
    ranks = own_ranks(units)
    found: dict[str, Module] = {}
    for target in units:
        alpha, scale = alphas.get(_path(target)), scales.get(target)
        found[target.place] = Module(target.place, ranks[target.place], alpha, scale, target.kind)
    return tuple(found.values())


def _path(target: Target) -> str:
    """The path of a module in the keys of a file."""
    return target.path if target.component == "model" else f"{target.component}.{target.path}"


def _alphas(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Module path -> the number in its alpha tensor."""
    named: dict[str, Any] = {name[0]: tensors[key] for key in tensors if (name := alpha_of(key))}
    return {path: _number(tensor) for path, tensor in named.items() if _one(tensor)}


def _number(tensor: Tensor) -> float:
    return float(np.asarray(tensor.read()).reshape(-1)[0])


def _one(tensor: Tensor) -> bool:
    return int(np.prod(tensor.shape)) == 1
