"""How a bare file finds its alpha. Never a guess: an unknown alpha is an error with its remedy."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loramerge.adapters.adapter import Tensor
from loramerge.errors import IncompatibleError, SourceError, UsageError, printable, say
from loramerge.formats.files.json import parse_object, read_object
from loramerge.formats.files.safetensors import File
from loramerge.formats.forms.table import TYPES
from loramerge.formats.peft.config import Scaling, check_mergeable, scales
from loramerge.formats.peft.exchange import plain
from loramerge.formats.peft.names import WEIGHTS
from loramerge.formats.peft.number import NO_ALPHA, fitting, number, scale
from loramerge.formats.peft.pairs import Pairs, Stored
from loramerge.formats.peft.updates import understood

OURS = "loramerge"  # metadata key of files that loramerge wrote: scales are folded into lora_B
DIFFUSERS = "lora_adapter_metadata"
SCHEMA = 1

ScaleOf = Callable[[str], float]
Said = tuple[Pairs, ScaleOf, dict[str, Any]]  # the pairs as the config means them, their scales, the config
Alpha = float | str  # a number, "rank" for scale 1, or "rslora:16"


def of_bare_file(file: File, stored: Stored) -> Said | None:
    """(pairs, scale of a module, config) of a file without a config of its own, or None: it does not say.

    In this order: header metadata, `.alpha` tensors, a JSON file beside it.

    Raises:
        SourceError: what is said cannot be true of this file.
    """
    return next(filter(None, (find(file, stored) for find in (_ours, _metadata, _tensors, _sidecar))), None)


def given(file: File, stored: Stored, alpha: Alpha | None) -> Said:
    """The same from the user: a number, ``"rank"`` for scale 1, or ``"rslora:16"``.

    Raises:
        IncompatibleError: no `alpha` is given; the message holds two options to paste.
    """
    if alpha is None:
        pairs = understood(stored, {}, None, file.name)  # what no alpha would help is told first
        if any(pair.scaled for pair in pairs.factors.values()):
            raise unknown(file)
        return pairs, (lambda path: 1.0), {}
    return (*with_alpha(stored, alpha, file.name), {})


def unknown(file: File) -> IncompatibleError:
    """The alpha of a file is not known."""
    return IncompatibleError(
        f"{printable(file.name)} does not say its alpha, and the strength of a LoRA depends on it. Add "
        f"{say('alpha', {file.path.name: 16})} (with its training alpha; rslora:16 if it was "
        f"trained with rsLoRA), or {say('alpha', 'rank')} if the scale is already in the weights."
    )


def with_alpha(stored: Stored, alpha: Alpha, name: str) -> tuple[Pairs, ScaleOf]:
    """The pairs and their scales, if nothing but `alpha` is known."""
    pairs = understood(stored, {}, None, name)
    if alpha == "rank":
        return pairs, (lambda path: 1.0)
    return pairs, (lambda path: scale(alpha, _rank(path, pairs, name)))


def _rank(path: str, pairs: Pairs, name: str) -> int:
    """What alpha is divided by, where only the tensors tell it."""
    if not pairs.factors[path].scaled:
        return 1
    if (rank := pairs.factors[path].rank) is None:
        raise IncompatibleError(
            f"{printable(path)} in {printable(name)} is a LoKr of two whole matrices, whose r only its "
            "adapter_config.json tells: load its folder."
        )
    return rank


def check_alpha(alpha: Alpha | None) -> None:
    """What a user may give as alpha.

    Raises:
        UsageError: it is none of a number above 0, ``"rank"`` and ``"rslora:16"``.
    """
    if alpha is not None and fitting(alpha) is None:
        raise UsageError(f"{say('alpha', alpha)} {NO_ALPHA}.")


def check_tensors(scale_of: ScaleOf, pairs: Pairs, name: str) -> None:
    """Hold alpha tensors, if there are any, against what else says the scale.

    Raises:
        SourceError: one belongs to no pair, or says another scale.
    """
    for path in sorted(pairs.alphas):
        if path not in pairs.factors:
            raise SourceError(
                f"{printable(name)} has an alpha for {printable(path)}, but no pair: it was badly saved."
            )
        said = _scalar(path, pairs.alphas[path], name) / _rank(path, pairs, name)
        if not math.isclose(said, scale_of(path), rel_tol=1e-3):  # an alpha may be stored in bfloat16
            raise SourceError(
                f"{printable(name)} gives {printable(path)} the scale {scale_of(path):g} by its settings and "
                f"{said:g} by its alpha tensor: one of them is wrong."
            )


def already_known(name: str) -> UsageError:
    """An alpha was given for a source that says its own; two answers cannot both be right."""
    return UsageError(f"{printable(name)} says its own alpha: drop {say('alpha')} for it.")


def _ours(file: File, stored: Stored) -> Said | None:
    if OURS not in file.metadata:
        return None
    record = parse_object(file.metadata[OURS], f"the loramerge metadata of {file.name}")
    if record.get("schema") != SCHEMA:
        raise SourceError(
            f"{printable(file.name)} was written by another version of loramerge (schema "
            f"{printable(record.get('schema'))}, this one reads {SCHEMA}): update loramerge."
        )
    config = record.get("config")
    config = config if isinstance(config, dict) else {}
    rule = scales(config, file.name) if "lora_alpha" in config else None
    return understood(stored, config, rule, file.name), (lambda path: 1.0), config


def _metadata(file: File, stored: Stored) -> Said | None:
    if DIFFUSERS not in file.metadata:
        return None
    where = f"the {DIFFUSERS} of {file.name}"
    config = parse_object(file.metadata[DIFFUSERS], where)
    return _fitting(_without_prefix(config, where), stored, where)


def _without_prefix(config: dict[str, Any], where: str) -> dict[str, Any]:
    """diffusers writes `<component>.r`; a file of one component has one prefix, or none."""
    if "r" in config:
        return config
    prefixes = {key.rpartition(".")[0] for key in config if key.rpartition(".")[2] == "r"}
    if len(prefixes) != 1:
        raise SourceError(f"{printable(where)} does not give one r, so the scale is unknown.")
    prefix = f"{prefixes.pop()}."
    return {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}


def _tensors(file: File, stored: Stored) -> Said | None:
    if not stored.alphas:
        return None
    if missing := sorted(stored.modules.keys() - stored.alphas.keys()):
        raise SourceError(
            f"{printable(file.name)} has alpha tensors, but none for {printable(missing[0])}: "
            "it was badly saved."
        )
    pairs = understood(stored, {}, None, file.name)
    found = {path: _scalar(path, pairs.alphas[path], file.name) for path in pairs.factors}
    return pairs, (lambda path: found[path] / _rank(path, pairs, file.name)), {}


def _scalar(path: str, tensor: Tensor, name: str) -> float:
    return number(tensor, f"{printable(path)} in {printable(name)}")


def _sidecar(file: File, stored: Stored) -> Said | None:
    named = file.path.with_suffix(".json")
    if os.path.isfile(named):
        config = read_object(named, named.name)
        if "lora_alpha" in config or config.get("peft_type") in tuple(TYPES):  # else it is something else
            return _fitting(config, stored, named.name)
    shared = file.path.parent / "adapter_config.json"
    if not os.path.isfile(shared) or not _is_only_adapter(file.path):
        return None
    where = f"adapter_config.json beside {file.name}"
    config = plain(read_object(shared, where))
    check_mergeable(config, where)
    rule = scales(config, where)
    pairs = understood(stored, config, rule, where)
    fits = all(rule.rank(path) == pair.rank for path, pair in pairs.factors.items())
    return (pairs, rule.scale, config) if fits else None


def _is_only_adapter(path: Path) -> bool:
    """Whether a config beside it can mean no other file; a file named as PEFT names it is the one meant."""
    if path.name == WEIGHTS:
        return True
    try:
        names = os.listdir(path.parent)
    except OSError:
        return False
    return not any(n.endswith((".safetensors", ".bin", ".pt")) for n in names if n != path.name)


def _fitting(config: Mapping[str, Any], stored: Stored, where: str) -> Said:
    check_mergeable(config, where)
    rule = scales(config, where)
    pairs = understood(stored, config, rule, where)
    check_ranks(rule, pairs, where)
    return pairs, rule.scale, dict(config)


def check_ranks(rule: Scaling, pairs: Pairs, where: str) -> None:
    """The config must give every module the rank that its tensors have.

    Raises:
        SourceError: it does not; a wrong rank would be a wrong scale.
    """
    for path, pair in pairs.factors.items():
        if pair.scaled and rule.rank(path) != pair.rank:
            raise SourceError(
                f"{printable(where)} gives {printable(path)} rank {rule.rank(path)}, but its tensors have "
                f"rank {pair.rank}: they do not belong together, and the scale would be wrong."
            )
