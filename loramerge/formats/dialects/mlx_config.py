"""The adapter_config.json of mlx-lm: which scale it means, and what it must hold for mlx-lm to load it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from loramerge.errors import IncompatibleError, SourceError, printable, say
from loramerge.formats.dialects.dialect import Header
from loramerge.formats.files.json import read_object
from loramerge.formats.peft.config import plausible
from loramerge.formats.peft.number import scale

CONFIG = "adapter_config.json"
OURS = re.compile(
    r"(\d+_)?adapters\.(safetensors|npz)"
)  # with the checkpoints that training leaves beside it
ALL_LAYERS = -1


def is_mlx(config: Mapping[str, Any]) -> bool:
    """Whether a config is one of mlx-lm: PEFT's says its type."""
    return "peft_type" not in config and ("lora_parameters" in config or "fine_tune_type" in config)


def with_config(header: Header) -> Header:
    """The header, with the config that lies beside a file that mlx-lm's trainer wrote."""
    path = header.file.path
    beside = path.parent / CONFIG
    if header.config is not None or not OURS.fullmatch(path.name) or not os.path.isfile(beside):
        return header
    config = read_object(beside, f"{CONFIG} beside {header.name}")
    return replace(header, config=config, files=(path, beside)) if is_mlx(config) else header


def scale_rule(header: Header) -> tuple[Callable[[int], float], list[str]]:
    """(rank of a module -> its scale, what should be said of it).

    Raises:
        SourceError: the config is malformed, or of another rank than the tensors.
        IncompatibleError: it means no plain LoRA, or no scale is known.
    """
    if not header.config:
        return _given(header), []
    _check_type(header.config, header.name)
    parameters = header.config.get("lora_parameters")
    if not isinstance(parameters, dict):
        raise SourceError(f"lora_parameters of {printable(header.name)} must be a table with rank and scale.")
    scale, rank = _number(parameters, "scale", header.name), _number(parameters, "rank", header.name)
    notes = _alpha(header.config, parameters, rank, header.name)

    def rule(own: int) -> float:
        if own != rank:
            raise SourceError(
                f"{CONFIG} of {printable(header.name)} says rank {rank:g}, but its tensors have rank {own}: "
                "they do not belong together."
            )
        return scale

    return rule, [*header.unused_alpha(), *notes]


def base_model(config: Mapping[str, Any]) -> str | None:
    """The model that it was trained on."""
    model = config.get("model")
    return model if isinstance(model, str) and model else None


def written(keys: list[str], rank: int, model: Any) -> dict[str, Any]:
    """What mlx-lm needs to load factors whose scale is folded in.

    It adapts the modules of these names in the last `num_layers` layers. A module that the file lacks keeps
    the zeros that it starts with, so all layers are named: how many there are is not known here.
    """
    return {
        "fine_tune_type": "lora",
        "lora_parameters": {"dropout": 0.0, "keys": keys, "rank": rank, "scale": 1.0},
        "model": model,
        "num_layers": ALL_LAYERS,
    }


def _check_type(config: Mapping[str, Any], name: str) -> None:
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise IncompatibleError(
            f"{printable(name)} has fine_tune_type {printable(kind)}, not lora or dora: it holds whole "
            "weights, no low-rank pairs to merge."
        )


def _alpha(config: Mapping[str, Any], parameters: Mapping[str, Any], rank: float, name: str) -> list[str]:
    """An alpha in the config: mlx-lm ignores it, but some of its first versions multiplied by it."""
    alpha = parameters.get("alpha")
    if alpha is None or alpha == rank:
        return []
    if "num_layers" in config:
        return [f"lora_parameters has an alpha ({printable(alpha)}), which mlx-lm does not use"]
    raise IncompatibleError(
        f"{CONFIG} of {printable(name)} has an alpha and no num_layers, so it is of an early mlx-lm, and "
        "some of those multiplied the scale by alpha / rank. Write the product as its scale if yours did, "
        "remove alpha, and rename lora_layers to num_layers."
    )


def _given(header: Header) -> Callable[[int], float]:
    alpha = header.alpha
    if alpha is None:
        raise IncompatibleError(
            f"{printable(header.name)} does not say its scale, which mlx-lm keeps in {CONFIG}: put that file "
            f"beside it, or add {say('alpha')} with the scale times the rank "
            f"({say('alpha', 'rank')} for scale 1)."
        )
    return partial(scale, alpha)


def _number(values: Mapping[str, Any], field: str, name: str) -> float:
    value = values.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not plausible(value):
        shown = "missing" if value is None else f"{printable(repr(value), 60)}, not a number"
        raise SourceError(f"{field} in lora_parameters of {printable(name)} is {shown}.")
    return float(value)
