"""A single file of an image model in the parts of a pipeline, to compare it with a folder of diffusers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from loramerge.adapters.adapter import Computed, Tensor
from loramerge.arrays.backend import Array
from loramerge.checkpoints import single
from loramerge.checkpoints.alike import trained
from loramerge.checkpoints.checkpoint import Checkpoint, Key, Model
from loramerge.checkpoints.modules import weights
from loramerge.checkpoints.quantisation import unscaled


def in_parts(file: Checkpoint, folder: Checkpoint) -> tuple[Checkpoint, Checkpoint, list[Key]] | None:
    """Both with the tensors that both name, to be read only, and the tensors that only one of them names.

    None if the file has not every matrix of the parts that both have.
    """
    found, folder = _of_file(file), _unscaled(folder)
    if folder.models.keys() == {"model"}:  # one model of a pipeline: that which holds its tensors
        ours = {key for _, key in trained(folder)}
        found = {"model": max(found.values(), key=lambda own: len(ours & own.keys()), default={})}
    names = {(part, key) for part, tensors in found.items() for key in tensors}
    both = names & folder.tensors.keys()
    matrices = {w.key for w in weights(folder) if w.key[0] in found and w.target.kind != "embedding"}
    if not both or not matrices <= both:
        return None
    (shard,) = file.models["file"].shards.items()
    models = {
        part: Model("", {}, {shard[0]: replace(shard[1], tensors=_only(tensors, part, both))})
        for part, tensors in found.items()
    }
    alone = sorted((names | trained(folder)) - both)
    return replace(file, models=models), _restricted(folder, both), alone


def _of_file(file: Checkpoint) -> dict[str, dict[str, Tensor]]:
    """Part of a pipeline -> the tensors of the file that belong to it, under diffusers' names."""
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for (_, key), tensor in unscaled(file.tensors).items():
        several = single.parts(key, tensor.shape)
        for part in several[1:] if len(several) > 1 and not several[0].rows else several:
            found[part.component][f"{part.path}.{part.parameter}"] = _piece(tensor, part)
    return found


def _piece(tensor: Tensor, part: single.Part) -> Tensor:
    if not part.rows and not part.turned:
        return tensor
    high = sum(rows.stop - rows.start for rows in part.rows) or tensor.shape[0]
    shape = (high, *tensor.shape[1:])
    return Computed(shape[::-1] if part.turned else shape, partial(_read, tensor, part), tensor.dtype)


def _read(tensor: Tensor, part: single.Part) -> Array:
    array = tensor.read()
    array = np.concatenate([array[rows] for rows in part.rows]) if part.rows else array
    return array.T if part.turned else array


def _unscaled(folder: Checkpoint) -> Checkpoint:
    found = unscaled(folder.tensors)
    return folder if len(found) == len(folder.tensors) else _with(folder, found)


def _restricted(folder: Checkpoint, both: set[Key]) -> Checkpoint:
    models = {part: model for part, model in folder.models.items() if any(where == part for where, _ in both)}
    return _with(replace(folder, models=models), {key: folder.tensors[key] for key in both})


def _with(folder: Checkpoint, tensors: Mapping[Key, Tensor]) -> Checkpoint:
    """The folder with these tensors in the place of its own of the same names, and no others."""
    models = {
        part: replace(
            model,
            shards={
                name: replace(
                    shard, tensors={k: tensors[part, k] for k in shard.tensors if (part, k) in tensors}
                )
                for name, shard in model.shards.items()
            },
        )
        for part, model in folder.models.items()
    }
    return replace(folder, models=models)


def _only(tensors: Mapping[str, Tensor], part: str, both: set[Key]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if (part, key) in both}
