"""Adapters of one form that share all but a few coefficients: these are added, and the form is kept.

Where ΔW is linear in what differs, and everything else is equal, the weighted sum of the coefficients is the
weighted sum of the updates, exactly: the R of LoRA-XS, one scaling of VeRA, the spectrum of FourierFT, …
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from loramerge.adapters.adapter import Adapter, Computed, Tensor
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array
from loramerge.errors import IncompatibleError, UsageError, printable, say
from loramerge.formats.dialects import nola
from loramerge.formats.files.atomic import Confirm, new_file, new_folder
from loramerge.formats.files.destination import RECORD
from loramerge.formats.files.safetensors import Writer
from loramerge.formats.forms.form import numberless
from loramerge.formats.forms.lora import GATE
from loramerge.formats.forms.table import FORMS
from loramerge.formats.output import Outline, is_bare
from loramerge.formats.peft.alpha import OURS, SCHEMA
from loramerge.formats.peft.names import PREFIX, WEIGHTS, parse, shared_part
from loramerge.formats.peft.read import CONFIG, TOPK, is_fly, open_weights

LOOSE = {  # settings that change no update
    "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version", "task_type",
    "target_modules",
}  # fmt: skip
Tensors = Mapping[str, Tensor]
NEAR = 1e-6  # to 1, of weights


class Way(NamedTuple):
    """Parts of a module in which its ΔW is linear while all others stay the same.

    `neutral`: their value that changes nothing.
    """

    parts: frozenset[str]
    neutral: float = 0.0


NO_WAY = Way(frozenset())


def summed(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, Tensor]:
    """Key -> tensor of the merge in the form of the sources, without their extras.

    Raises:
        UsageError: a source is not in a form that is kept, or not on this disk.
        IncompatibleError: they differ in more than coefficients in which their ΔW is linear.
    """
    files = [_tensors(adapter) for adapter in adapters]
    _check_settings(adapters)
    first = files[0]
    for adapter, tensors in zip(adapters[1:], files[1:], strict=True):
        if tensors.keys() != first.keys():
            odd = min(tensors.keys() ^ first.keys())
            raise _apart(adapters[0], adapter, f"only one of them has {printable(odd)}")
    place = nola.place if adapters[0].dialect == nola.NOLA.name else place_of
    modules = dict[str, dict[str, str]]()
    for key in first:
        path, part = place(key)
        modules.setdefault(path, {})[key] = part
    made = dict[str, Tensor]()
    for path, parts in modules.items():
        values = {key: [np.asarray(tensors[key].read()) for tensors in files] for key in parts}
        way = _way(path, parts, values, adapters, weights)
        for key, arrays in values.items():
            total = _sum(arrays, weights, way.neutral) if parts[key] in way.parts else arrays[0]
            made[key] = Computed(total.shape, partial(np.asarray, total), first[key].dtype)
    return {key: made[key] for key in first}


def _sum(arrays: Sequence[Array], weights: Sequence[float], neutral: float) -> Array:
    total = np.full(arrays[0].shape, neutral)
    for weight, array in zip(weights, arrays, strict=True):
        total += weight * (dtypes.wide(array) - neutral)
    rounded: Array = total.astype(arrays[0].dtype)
    return rounded


def _way(
    path: str,
    parts: Mapping[str, str],
    values: Mapping[str, Sequence[Array]],
    adapters: Sequence[Adapter],
    weights: Sequence[float],
) -> Way:
    """The parts of a module to sum; none where all sources are alike and the weights add up to 1.

    Raises:
        IncompatibleError: its ΔW is not linear in what differs.
    """
    changed = set[str]()
    for key, arrays in values.items():
        if any(array.shape != arrays[0].shape for array in arrays):
            raise _apart(adapters[0], adapters[1], f"{printable(key)} has another shape")
        if not all(np.array_equal(array, arrays[0]) for array in arrays):
            if arrays[0].dtype.kind in "iub":
                raise _apart(adapters[0], adapters[1], f"{printable(key)} differs, and holds whole numbers")
            changed.add(parts[key])
    mean = abs(sum(weights) - 1) <= NEAR
    if is_fly(adapters[0].config):
        _check_fly(path, changed, adapters, weights)
    if not changed and (mean or not path):
        shared = [way for way in _ways(path, parts, adapters[0]) if way.parts & {*parts.values()}]
        return shared[0] if shared and not mean else NO_WAY
    ways = _ways(path, parts, adapters[0])
    if found := next((way for way in ways if changed <= way.parts and way.parts & {*parts.values()}), None):
        return found
    if ways and not changed:  # what it shares with others is multiplied
        return NO_WAY
    some = printable(", ".join(sorted(filter(None, changed))) or path, 80)
    how = f"in {some}, which differs" if changed else f"in any part of {printable(path)}"
    raise _apart(adapters[0], adapters[1 % len(adapters)], f"their ΔW is not linear {how}")


def _ways(path: str, parts: Mapping[str, str], adapter: Adapter) -> list[Way]:
    """The groups of parts in which the ΔW of a module is linear."""
    if adapter.dialect == nola.NOLA.name:
        return [Way(frozenset(group)) for group in nola.LINEAR]
    stored = {*parts.values()} - {GATE}
    forms = [f for f in FORMS.values() if stored <= {*(f.peft if path else f.shared)}]
    forms = [f for f in forms if f.fits(adapter.config) and (not path or stored >= {*f.must} - {*f.shared})]
    return [Way(frozenset(group), form.neutral) for form in forms for group in form.linear]


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
    outline: Outline,
    out: Path,
    overwrite: bool,
    record: Mapping[str, Any],
    check: Callable[[Path], None],
    confirm: Confirm = lambda: None,
) -> None:
    """A folder with these tensors, their config, and how they were made, if it stands the check.

    One file keeps in its header how it was made, without the report, as every merge in one file does.

    Raises:
        OutputError: it exists or cannot be written.
    """
    if is_bare(out):
        said = {"schema": SCHEMA, **{name: value for name, value in record.items() if name != "report"}}
        header = {"format": "pt", OURS: json.dumps(said, sort_keys=True, separators=(",", ":"))}
        with new_file(out, overwrite, confirm) as where:
            _write_tensors(where, outline, header)
            check(where)
        return
    with new_folder(out, overwrite, confirm) as where:
        _write_tensors(where / WEIGHTS, outline, {"format": "pt"})
        for name, told in ((CONFIG, outline.config), (RECORD, record)):
            (where / name).write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        check(where)


def _write_tensors(where: Path, outline: Outline, header: Mapping[str, str]) -> None:
    with Writer(where, outline.layout(), header) as writer:
        for key, tensor in outline.extras.items():
            writer.write(key, np.asarray(tensor.read()))


def single(adapter: Adapter) -> bool:
    """Whether its form is one file, not a folder."""
    return adapter.dialect == nola.NOLA.name


def _tensors(adapter: Adapter) -> Tensors:
    """Its tensors without its extras.

    Raises:
        UsageError: it is not in a form that is kept, or not on this disk.
    """
    files = adapter.provenance.files
    folder = adapter.dialect == "peft" and not adapter.bare and files and files[0].name == WEIGHTS
    if not (folder or (files and single(adapter))):
        raise UsageError(
            f"{say('keep_form', True)} is for PEFT folders and NOLA files on this disk, and "
            f"{printable(adapter.name)} is not one."
        )
    tensors = open_weights(files[0], adapter.name, allow_pickle=True).tensors  # as it was opened before
    return {key: tensor for key, tensor in tensors.items() if key not in adapter.extras}


def _check_settings(adapters: Sequence[Adapter]) -> None:
    """All settings that have a part in the updates are equal."""
    first = adapters[0]
    for other in adapters[1:]:
        for key in sorted((first.config.keys() | other.config.keys()) - LOOSE):
            if first.config.get(key) != other.config.get(key):
                raise _apart(first, other, f"they set {printable(key)} differently")


def place_of(key: str) -> tuple[str, str]:
    """The module and the part that a key is; no module for what all share."""
    if shared := shared_part(key):
        return "", shared.partition(".")[0]
    if TOPK.fullmatch(key):
        return key.partition(".lora_topk_bias")[0].removeprefix(PREFIX), GATE
    found = parse(key)
    return (found.path, numberless(found.part)) if found else (key, "")


def _apart(first: Adapter, other: Adapter, why: str) -> IncompatibleError:
    return IncompatibleError(
        f"{printable(first.name)} and {printable(other.name)} cannot be merged in their own form: {why}. "
        f"Drop {say('keep_form')}: the merge is then a plain LoRA."
    )
