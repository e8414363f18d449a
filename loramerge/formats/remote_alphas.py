"""The alphas inside a file on the Hub: read if few requests are enough, else taken from its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import isclose, prod
from typing import Any

import numpy as np

from loramerge.adapters.adapter import Adapter, Computed, Held, Slot, Tensor
from loramerge.arrays.backend import Array
from loramerge.errors import SourceError, printable
from loramerge.formats.files.safetensors import File, TensorRef
from loramerge.formats.forms.parts import taken_apart
from loramerge.formats.peft.config import plausible
from loramerge.hub.ranges import REQUESTS, Ranged

ALPHA, ARGS = "ss_network_alpha", "ss_network_args"  # of sd-scripts, musubi-tuner and LyCORIS
ENDING = ".alpha"
NUMBER = 8  # bytes at most
NEAR = 2**-8  # an alpha may be stored in bfloat16


# a request for each alpha took longer than the file; what is only stated hands out no factors, so it gets
# into no sum
def with_alphas(file: File, ranged: Ranged) -> tuple[File, str] | None:
    """The file with its alphas at hand, and a sentence if most are only stated; None if they are not known.

    Raises:
        SourceError: as `Ranged.read`.
    """
    found = [t for key, t in file.tensors.items() if key.endswith(ENDING) and isinstance(t, TensorRef)]
    alphas = sorted((t for t in found if t.nbytes <= NUMBER), key=lambda tensor: tensor.start)
    if ranged.read_ahead((alpha.start, alpha.nbytes) for alpha in alphas):
        return file, ""
    if any(prod(alpha.shape) != 1 or alpha.nbytes > NUMBER for alpha in found):
        return None  # the file is broken, and its reader says how
    stated = stated_alphas(file.metadata, file.tensors)
    sample = _spread(sorted(alphas, key=lambda alpha: (stated or {}).get(alpha.key, 0.0)), REQUESTS)
    if stated is None or not ranged.read_ahead((alpha.start, alpha.nbytes) for alpha in sample):
        return None
    if not all(_says(alpha, stated[alpha.key]) for alpha in sample):
        return None
    unread = stated.keys() - {alpha.key for alpha in sample}
    held: Mapping[str, Tensor] = {key: Held(np.array(stated[key])) for key in unread}
    shown = " or ".join(f"{value:g}" for value in sorted(set(stated.values())))
    return replace(file, tensors={**file.tensors, **held}), (
        f"the alpha ({shown}) is as the metadata states it ({ALPHA}): {len(sample)} of the {len(alphas)} "
        f"alphas inside the file were read, and say the same; the others were not "
        f"(a download reads all)"
    )


def _says(alpha: TensorRef, value: float) -> bool:
    """Whether an alpha inside the file is the one that is stated."""
    return prod(alpha.shape) == 1 and isclose(float(alpha.read().reshape(())), value, rel_tol=NEAR)


def _spread(items: list[TensorRef], count: int) -> list[TensorRef]:
    """A sample of this size, evenly spaced, with the first and the last."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def closed(adapter: Adapter) -> Adapter:
    """The adapter for inspection only: without its true alpha, a factor must not enter a sum."""

    def refuse() -> Array:
        raise SourceError(
            f"The alphas of {printable(adapter.name)} were not all read, only what its metadata states: load "
            "it without peeking."
        )

    def shut(tensor: Tensor) -> Tensor:
        return Computed(tensor.shape, refuse, tensor.dtype)

    slots = {
        target: Slot(shut(slot.up), shut(slot.down), slot.scale) for target, slot in adapter.slots.items()
    }
    return replace(adapter, slots=slots)


def stated_alphas(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, float] | None:
    """Key of an alpha -> what the settings of the training make it; None if they do not say it of all.

    Convolutions with a kernel above 1 have `conv_alpha`, where `conv_dim` or `conv_alpha` was set. Settings
    that give blocks alphas of their own say too little to tell which modules these are.

    >>> from loramerge.adapters.adapter import Held
    >>> import numpy as np
    >>> tensors = {"lora_te_x.alpha": Held(np.ones(()))}
    >>> stated_alphas({"ss_network_alpha": "16.0"}, tensors), stated_alphas({}, tensors)
    ({'lora_te_x.alpha': 16.0}, None)
    """
    usual, args = _number(metadata.get(ALPHA)), _args(metadata.get(ARGS, "{}"))
    keys = [key for key in tensors if key.endswith(ENDING)]
    if usual is None or args is None or any("alpha" in name and name != "conv_alpha" for name in args):
        return None
    convs = _convolutions(tensors)
    told = {"conv_dim", "conv_alpha"} & args.keys()
    conv = _number(args.get("conv_alpha")) if told else usual
    if conv is None and convs:
        return None
    return {key: conv if conv and key.removesuffix(ENDING) in convs else usual for key in keys}


def _convolutions(tensors: Mapping[str, Tensor]) -> set[str]:
    """The modules with a factor that has a kernel above 1."""
    wide = (taken_apart(key) for key, tensor in tensors.items() if prod(tensor.shape[2:]) > 1)
    return {found[0] for found in wide if found}


def _args(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else ({} if found is None else None)


def _number(value: object) -> float | None:
    """A number above 0, also as text; None for others, such as `Dynamic`."""
    try:
        found = float(value) if isinstance(value, str | int | float) else None
    except (ValueError, OverflowError):
        return None
    return found if found is not None and found > 0 and plausible(found) else None
