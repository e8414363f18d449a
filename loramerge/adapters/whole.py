"""A whole model in the place of an adapter, or the other way round: how each is told, and what helps."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from loramerge.adapters.adapter import Tensor
from loramerge.adapters.late import late
from loramerge.errors import EmptyError, printable, spoken, word

CONFIG, PIPELINE = "config.json", "model_index.json"  # the second one of a folder of diffusers
STEM = r"(model|pytorch_model|diffusion_pytorch_model|consolidated|tf_model)"
INDEX = late(rf"{STEM}\.(safetensors|bin)\.index\.json")
WEIGHTS = late(rf"{STEM}([.-]\w+)*\.(safetensors|bin|h5)")  # people call adapters so, too
FACTOR = late(r"(?i)lora[._]?(a|b|up|down|mid|embedding)([._]|$)|lokr_|hada_|oft_|ia3_l|dora_scale|_lambda")
LEAST = 2  # matrices that are no factors


def is_whole(names: Collection[str]) -> bool:
    """Whether these files of a folder are those of a model."""
    if PIPELINE in names or any(map(INDEX.fullmatch, names)):
        return True
    return CONFIG in names and any(map(WEIGHTS.fullmatch, names))


def is_model_folder(folder: Path) -> bool:
    """The same of a folder on this disk."""
    try:
        return is_whole(os.listdir(folder))
    except OSError:
        return False


def are_weights(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors are the weights of a model, and none a factor of an adapter."""
    matrices = [key for key, tensor in tensors.items() if key.endswith("weight") and len(tensor.shape) > 1]
    return len(matrices) >= LEAST and not any(map(FACTOR.search, tensors))


def are_factors(keys: Collection[str]) -> bool:
    """Whether most tensors are parts of an adapter."""
    return 2 * sum(map(bool, map(FACTOR.search, keys))) > len(keys)


def no_adapter(name: str, what: str = "is a whole model, not an adapter") -> str:
    """That a model stands in the place of an adapter, and what makes one of it."""
    shown = printable(name, 1000)
    how = f"`loramerge extract {word(name)} BASE`" if spoken() == "shell" else f"lm.extract({name!r}, base)"
    return f"{shown} {what}: {how} takes an adapter out of it, given the model that it was trained from."


def no_model(name: str) -> str:
    """That an adapter stands in the place of a model, and what is done with it."""
    shown = printable(name, 1000)
    ways = f"lm.fuse({name!r}, base, out)", "lm.combine"
    if spoken() == "shell":
        ways = f"`loramerge fuse {word(name)} BASE -o MODEL`", "`loramerge combine`"
    return (
        f"{shown} is an adapter, and a whole model is asked for: {ways[0]} adds it to the model that it was "
        f"trained on, and {ways[1]} merges it with others."
    )


def no_pair(name: str, tensors: Mapping[str, Tensor]) -> EmptyError:
    """Where no tensor is part of an update."""
    some = ", ".join(printable(key, 40) for key in list(tensors)[:3]) or "no tensors"
    if are_weights(tensors):
        what = f"holds no LoRA pair ({some}) but the weights of a model"
        return EmptyError(no_adapter(printable(name), what))
    return EmptyError(f"{printable(name)} holds no LoRA pair ({some}): it is not a LoRA adapter.")
