"""What an image model changes beside its matrices, as kohya names it: norms and biases by differences."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import numpy as np

from loramerge.adapters.adapter import Adapter, Computed, Held, Slot, Tensor
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.checkpoints import quantisation, single
from loramerge.checkpoints.checkpoint import Key
from loramerge.checkpoints.difference import Beside, Pair, name_of
from loramerge.errors import IncompatibleError, printable, say
from loramerge.formats.dialects.kohya import KOHYA
from loramerge.formats.peft.beside import told

ENDS = {"weight": "diff", "bias": "diff_b"}  # ComfyUI's and LyCORIS' names of a difference


def deltas(pair: Pair, adapted: Collection[Target], beside: Sequence[Beside]) -> dict[str, Tensor]:
    """Differences of whole tensors, by their keys, beside the updates of matrices.

    Raises:
        IncompatibleError: one is of no module that has a name there, as the VAE.
    """
    placed = {each.key: _place(pair, each.key) for each in beside}
    homeless = [name_of(each.key) for each in beside if placed[each.key] is None or each.energy is None]
    if homeless:
        raise without_place(pair, homeless)
    dialect = KOHYA.bound([of_all(pair)])
    targets = {key: (dialect.home(there[0]), there[1]) for key, there in placed.items() if there is not None}
    names = dialect.keys([*map(dialect.home, adapted), *(target for target, _ in targets.values())])
    found: dict[str, Tensor] = {}
    for key, (target, parameter) in targets.items():
        module = names(target)[0].removesuffix(".lora_down.weight")
        shape = pair.tuned.tensors[key].shape
        found[f"{module}.{ENDS[parameter]}"] = Computed(shape, partial(_difference, pair, key), "F32")
    return found


def of_all(pair: Pair) -> Adapter:
    """An adapter of all matrices, without numbers: it tells which model it is, which a few may not."""
    slots = {
        weight.target: Slot(Held(np.empty((weight.shape[0], 0))), Held(np.empty((0, weight.shape[1]))), 1.0)
        for _, weight in pair.weights
    }
    return Adapter(pair.base.name, slots, dialect=KOHYA.name)


def _place(pair: Pair, key: Key) -> tuple[Target, str] | None:
    """The module of a tensor, and which of its parameters it is."""
    if "file" in pair.base.models:
        parts = single.parts(key[1], pair.base.tensors[key].shape) if key in pair.base.tensors else []
        component, path, parameter = (
            (parts[0].component, parts[0].path, parts[0].parameter) if len(parts) == 1 else ("", "", "")
        )
    else:
        component, (path, _, parameter) = key[0], key[1].rpartition(".")
    if not path or parameter not in ENDS or component == "vae":
        return None
    return Target(path, component=component), parameter


def _difference(pair: Pair, key: Key) -> Array:
    one, other = (quantisation.numbers(each.tensors, key) for each in (pair.tuned, pair.base))
    apart: Array = one.astype(np.float64) - other.astype(np.float64)
    return apart.astype(np.float32)


def without_place(pair: Pair, names: Sequence[str]) -> IncompatibleError:
    """The refusal of tensors that no adapter can hold."""
    return IncompatibleError(
        f"{printable(pair.tuned.name)} changes tensors that have no place in an adapter "
        f"({told(names)}): leave them out with {say('extras', 'drop')}, or by {say('exclude')}."
    )
