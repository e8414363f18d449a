"""State dicts of NumPy or torch tensors, in and out."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from loramerge.adapters.adapter import Adapter, BaseModel, Held, Tensor
from loramerge.adapters.arguments import checked
from loramerge.adapters.lowrank import LowRank
from loramerge.adapters.original import unchanged
from loramerge.adapters.target import Target
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array, from_torch, to_torch
from loramerge.errors import IncompatibleError, UsageError, printable
from loramerge.formats.dialects import PEFT
from loramerge.formats.extras import settle
from loramerge.formats.files.views import matrix, transposed
from loramerge.formats.forms.form import Base, Layer
from loramerge.formats.peft.alpha import Alpha, check_alpha, check_ranks, with_alpha
from loramerge.formats.peft.config import check_mergeable, scales
from loramerge.formats.peft.keys import Keys, Shelf
from loramerge.formats.peft.pairs import sort_tensors
from loramerge.formats.peft.read import updates
from loramerge.formats.peft.updates import understood
from loramerge.formats.wrappers import unwrapped, unwrapped_config


@checked("tensors", "config", "name", "base")
def from_state_dict(
    tensors: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    *,
    alpha: Alpha | None = None,
    name: str = "state dict",
    base: Mapping[str, Any] | None = None,
) -> Adapter:
    """An adapter from PEFT-named tensors in memory (NumPy arrays or torch tensors, bfloat16 too).

    Args:
        tensors: ``base_model.model.<module>.lora_A.weight`` (r, in) and ``….lora_B.weight`` (out, r).
        config: a PEFT config (``peft_config.to_dict()``); or else `alpha`, as for `load`.
        name: how messages and reports call it.
        base: the state dict of the model that it was trained on, for forms that need it, such as DoRA.

    Raises:
        UsageError: neither or both of `config` and `alpha` are given.
        SourceError, IncompatibleError: the tensors or the config are no plain LoRA.

    >>> a = from_state_dict({"base_model.model.q.lora_A.weight": np.ones((1, 3)),
    ...                      "base_model.model.q.lora_B.weight": np.ones((2, 1))}, alpha=4)
    >>> a[Target("q")].dense()
    array([[4., 4., 4.],
           [4., 4., 4.]])
    """
    if (config is None) == (alpha is None):
        raise UsageError(f"{name}: give config= or alpha=, so that the scale is known (one of them).")
    check_alpha(alpha)
    held, notes = unwrapped({key: Held(to_numpy(value)) for key, value in tensors.items()}, name)
    config = unwrapped_config(config or {})
    turned = config.get("fan_in_fan_out") is True
    stored = sort_tensors(held, name, None if base is None else Weights(base, turned))
    if alpha is not None:
        pairs, scale_of = with_alpha(stored, alpha, name)
    else:
        check_mergeable(config, name)
        rule = scales(config, name)
        pairs, scale_of = understood(stored, config, rule, name), rule.scale
        check_ranks(rule, pairs, name)
    slots, biases = updates(pairs, scale_of, config)
    trained = config.get("base_model_name_or_path")
    return Adapter(
        name,
        slots,
        BaseModel(trained),
        pairs.extras,
        config,
        biases=biases,
        oddities=(*notes, *pairs.oddities),
        full=pairs.full,
    )


class Weights(Base):
    """A base model in memory; `turned` if its linear layers are (in, out)."""

    name = "base"

    def __init__(self, tensors: Mapping[str, Any], turned: bool) -> None:
        self.tensors, self.turned = tensors, turned

    def layers(self, paths: Collection[str]) -> Mapping[str, Layer]:
        return {path: self._layer(path) for path in paths if 2 <= len(self._shape(path)) <= 5}

    def weights(self, sizes: Mapping[Target, tuple[int, int]]) -> Mapping[Target, Tensor]:
        raise IncompatibleError(
            "Weights in memory are for PEFT's names: give a model on the disk or the Hub."
        )

    def _shape(self, path: str) -> tuple[int, ...]:
        return tuple(getattr(self.tensors.get(f"{path}.weight"), "shape", ()))

    def _layer(self, path: str) -> Layer:
        weight, bias = Held(to_numpy(self.tensors[f"{path}.weight"])), self.tensors.get(f"{path}.bias")
        kernel = weight.shape[2:]
        whole = transposed(weight) if self.turned and not kernel else matrix(weight)
        size = whole.shape[0], whole.shape[1]
        return Layer(size, whole, None if bias is None else Held(to_numpy(bias)), kernel)


@checked("adapter", "framework")
def to_state_dict(adapter: Adapter, framework: str = "numpy") -> dict[str, Any]:
    """PEFT-named tensors in memory with the scale folded into ``lora_B``: load them with alpha = r.

    Args:
        framework: ``"numpy"`` or ``"torch"`` (needs the extra ``torch``).

    Raises:
        UsageError: another framework.
        IncompatibleError: a scaled value does not fit the dtype, or the adapter is for several models.

    >>> unit = LowRank(np.ones((2, 1)), np.ones((1, 3)), scale=2.0)
    >>> {key: value.shape for key, value in to_state_dict(Adapter.of({"q": unit})).items()}
    {'base_model.model.q.lora_A.weight': (1, 3), 'base_model.model.q.lora_B.weight': (2, 1)}
    """
    if framework not in ("numpy", "torch"):
        raise UsageError(f"framework={framework!r} is not one of 'numpy', 'torch'.")
    adapter = PEFT.adopt(adapter)
    state: dict[str, Array] = {}
    blocks = Counter(target.place for target in adapter if target.layout.blocks > 1)
    shelf = Shelf(Keys(adapter).of, state.__setitem__, blocks)
    with unchanged(adapter.provenance.originals):
        for target, update in adapter.items():
            shelf.put(target, _folded(update, target), np.asarray(update.down))
        for key, tensor in settle([adapter], [1.0], "first", adapter).tensors.items():
            state[key] = np.asarray(tensor.read())
    return state if framework == "numpy" else {k: to_torch(v.copy()) for k, v in state.items()}


def _folded(update: LowRank, target: Target) -> Array:
    """The up factor with the scale in it, in its own type."""
    if update.scale == 1.0:
        return update.up
    with np.errstate(over="ignore"):
        up = (dtypes.wide(update.up) * update.scale).astype(update.up.dtype)
    if not np.isfinite(dtypes.wide(up)).all():
        raise IncompatibleError(
            f"{printable(target)} times its scale {update.scale:g} does not fit {up.dtype}: convert the "
            "tensors to float32 first."
        )
    return up


def to_numpy(tensor: Any) -> Array:
    """The values of a NumPy array or a torch tensor, on the host, where an adapter lives."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(tensor, torch.Tensor):
        return np.asarray(tensor)
    return np.asarray(from_torch(tensor.cpu().contiguous()))
