"""A gate that lets every unit through alike does nothing: such a file of SMoRA or FlyLoRA is a plain LoRA."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.adapters.late import late
from loramerge.formats.files.safetensors import File
from loramerge.formats.routers import OWN, system_of

USUAL = 8  # units of a token, where the config does not say it
CHOSEN = {"smora": "activate_r", "flylora": "top_k"}  # the setting of how many units a token gets
DOWN = late(r".+\.lora_A(?:\.\w+)?\.weight", re.DOTALL)
GATE = late(r".+\.(?:lora_router(?:\.\w+)?\.weight|(lora_biases|lora_topk_bias)(?:\.\w+)?)", re.DOTALL)


def evened(config: Mapping[str, Any], file: File) -> tuple[dict[str, Any], File, Sequence[str]]:
    """Config and tensors without the gate, and a sentence about it; unchanged where the gate chooses.

    SMoRA scales by alpha / k and FlyLoRA by alpha / r, which is the same where all units are chosen.
    """
    found = system_of(file.tensors, config)
    if found is None or found.name not in CHOSEN or not _all_alike(found.name, config, file.tensors):
        return dict(config), file, ()
    kept = {key: tensor for key, tensor in file.tensors.items() if not GATE.fullmatch(key)}
    plain = {key: value for key, value in config.items() if key not in OWN} | {"peft_type": "LORA"}
    note = f"its gate of {found.words} lets every unit through alike, so it is read as plain LoRA"
    return plain, replace(file, tensors=kept), [note]


def _all_alike(system: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Whether all units of every module are chosen, and weigh the same."""
    count, downs = config.get(CHOSEN[system], USUAL), [t for k, t in tensors.items() if DOWN.fullmatch(k)]
    if not downs or any(len(t.shape) != 2 for t in downs) or isinstance(count, bool):
        return False
    if system == "flylora":
        return isinstance(count, int) and all(count >= t.shape[0] for t in downs)
    return all(count == t.shape[0] for t in downs) and all(map(_even, *_gates(tensors)))


def _gates(tensors: Mapping[str, Tensor]) -> tuple[list[Tensor], list[bool]]:
    """The tensors of the gates, and which of them are biases."""
    found = [(tensor, match) for key, tensor in tensors.items() if (match := GATE.fullmatch(key))]
    return [tensor for tensor, _ in found], [bool(match[1]) for _, match in found]


def _even(tensor: Tensor, bias: bool) -> bool:
    """Zero, or of a bias one number for all units, which leaves each a share above zero."""
    values = np.asarray(tensor.read()).astype(np.float64)
    return bool(np.ptp(values) == 0 and values.min() > -0.5) if bias and values.size else not values.any()
