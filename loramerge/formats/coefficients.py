"""Adapters of one form that share all but a few coefficients: these are added, and the form is kept.

Where ΔW is linear in what differs, and everything else is equal, the weighted sum of the coefficients is the
weighted sum of the updates, exactly: the R of LoRA-XS, one scaling of VeRA, the spectrum of FourierFT, …
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.adapters.adapter import Adapter, Tensor
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array
from loramerge.errors import IncompatibleError, UsageError, printable, say
from loramerge.formats.files.atomic import new_folder
from loramerge.formats.files.destination import RECORD
from loramerge.formats.files.safetensors import Writer, open_file
from loramerge.formats.forms.form import numberless
from loramerge.formats.forms.lora import GATE
from loramerge.formats.forms.table import FORMS
from loramerge.formats.peft.names import PREFIX, WEIGHTS, parse, shared_part
from loramerge.formats.peft.read import CONFIG, TOPK, is_fly

LOOSE = {  # settings that change no update
    "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version", "task_type",
    "target_modules",
}  # fmt: skip
Tensors = Mapping[str, Tensor]
NEAR = 1e-6  # to 1, of weights


def summed(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, tuple[str, Array]]:
    """Key -> (dtype, numbers) of the merge in the form of the sources.

    Raises:
        UsageError: a source is no PEFT folder on this disk.
        IncompatibleError: they differ in more than coefficients in which their ΔW is linear.
    """
    files = [_tensors(adapter) for adapter in adapters]
    _check_settings(adapters)
    first = files[0]
    for adapter, tensors in zip(adapters[1:], files[1:], strict=True):
        if tensors.keys() != first.keys():
            odd = min(tensors.keys() ^ first.keys())
            raise _apart(adapters[0], adapter, f"only one of them has {printable(odd)}")
    made, changed = dict[str, tuple[str, Array]](), dict[str, set[str]]()
    for key, tensor in first.items():
        arrays = [np.asarray(tensors[key].read()) for tensors in files]
        if any(array.shape != arrays[0].shape for array in arrays):
            raise _apart(adapters[0], adapters[1], f"{printable(key)} has another shape")
        if all(np.array_equal(array, arrays[0]) for array in arrays):
            made[key] = tensor.dtype, arrays[0]
            continue
        if tensor.dtype not in dtypes.FLOATS:
            raise _apart(adapters[0], adapters[1], f"{printable(key)} differs, and holds whole numbers")
        path, part = _place(key)
        changed.setdefault(path, set()).add(part)
        total = sum(weight * dtypes.wide(array) for weight, array in zip(weights, arrays, strict=True))
        made[key] = tensor.dtype, np.asarray(total).astype(dtypes.FLOATS[tensor.dtype])
    for path, parts in changed.items():
        if is_fly(adapters[0].config):
            _check_fly(path, parts, adapters, weights)
        _check_linear(path, parts, {part for p, part in map(_place, first) if p == path}, adapters)
    return made


def _check_fly(path: str, parts: set[str], adapters: Sequence[Adapter], weights: Sequence[float]) -> None:
    """FlyLoRA of one seed: the mean of lora_B, and of what its gate adds.

    Raises:
        IncompatibleError: another seed has other units; or it is no mean.
    """
    if "down" in parts:
        raise IncompatibleError(
            f"{printable(adapters[0].name)} and {printable(adapters[1].name)} are FlyLoRA of different "
            f"seeds: lora_A of {printable(path)} differs, so that no single one does the same. `loramerge "
            "route` keeps each with its gate."
        )
    if abs(sum(weights) - 1) > NEAR:
        raise IncompatibleError(
            "FlyLoRA's gate is a mean of those of its sources: take the method average, or weights that add "
            f"up to 1 instead of {sum(weights):g}."
        )


def write(
    tensors: Mapping[str, tuple[str, Array]],
    config: Mapping[str, Any],
    out: Path,
    overwrite: bool,
    record: Mapping[str, Any],
    check: Callable[[Path], None],
) -> None:
    """A folder with these tensors, this config, and how they were made, if it stands the check.

    Raises:
        OutputError: it exists or cannot be written.
    """
    with new_folder(out, overwrite, lambda: None) as where:
        layout = {key: (kind, array.shape) for key, (kind, array) in tensors.items()}
        with Writer(where / WEIGHTS, layout, {"format": "pt"}) as writer:
            for key, (_, array) in tensors.items():
                writer.write(key, array)
        for name, said in ((CONFIG, config), (RECORD, record)):
            (where / name).write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        check(where)


def _tensors(adapter: Adapter) -> Tensors:
    files = adapter.provenance.files
    if adapter.dialect != "peft" or adapter.bare or not files or files[0].name != WEIGHTS:
        raise UsageError(
            f"{say('keep_form', True)} is for PEFT folders on this disk, and {printable(adapter.name)} is "
            "not one."
        )
    return open_file(files[0], adapter.name).tensors


def _check_settings(adapters: Sequence[Adapter]) -> None:
    """All settings that have a part in the updates are equal."""
    first = adapters[0]
    for other in adapters[1:]:
        for key in sorted((first.config.keys() | other.config.keys()) - LOOSE):
            if first.config.get(key) != other.config.get(key):
                raise _apart(first, other, f"they set {printable(key)} differently")


def _place(key: str) -> tuple[str, str]:
    """The module and the part that a key is; no module for what all share."""
    if shared := shared_part(key):
        return "", shared.partition(".")[0]
    if TOPK.fullmatch(key):
        return key.partition(".lora_topk_bias")[0].removeprefix(PREFIX), GATE
    found = parse(key)
    return (found.path, numberless(found.part)) if found else (key, "")


def _check_linear(path: str, parts: set[str], whole: set[str], adapters: Sequence[Adapter]) -> None:
    """ΔW is linear in what differs in a module, of all that is `whole`.

    Raises:
        IncompatibleError: it is not.
    """
    stored, config = whole - {GATE}, adapters[0].config
    forms = [f for f in FORMS.values() if stored <= {*(f.peft if path else f.shared)} and f.fits(config)]
    if not any(parts <= set(group) for form in forms for group in form.linear):
        some = printable(", ".join(sorted(filter(None, parts))) or path, 80)
        raise _apart(adapters[0], adapters[1], f"their ΔW is not linear in {some}, which differs")


def _apart(first: Adapter, other: Adapter, why: str) -> IncompatibleError:
    return IncompatibleError(
        f"{printable(first.name)} and {printable(other.name)} cannot be merged in their own form: {why}. "
        f"Drop {say('keep_form')}: the merge is then a plain LoRA."
    )
