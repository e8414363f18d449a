"""What an adapter changes in a model: for each tensor, its first value and what is added to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from loramerge.adapters.adapter import Adapter, Scaled, Tensor
from loramerge.adapters.target import Target
from loramerge.arrays import dtypes
from loramerge.checkpoints.checkpoint import Checkpoint, Key
from loramerge.checkpoints.places import Place, Places
from loramerge.checkpoints.tie import (
    HEAD,
    INPUTS,
    TYING,
    copies,
    embedding,
    head,
    head_name,
    is_plain,
    is_tied,
    same,
)
from loramerge.errors import IncompatibleError, printable, say
from loramerge.formats import models
from loramerge.formats.dialects.kohya import COMPONENTS
from loramerge.formats.dialects.kohya import KEY as FLAT
from loramerge.formats.peft import beside
from loramerge.formats.peft.names import PREFIX, unmarked


@dataclass(eq=False)
class Change:
    """What becomes of one tensor.

    Args:
        key: its name in the result.   dtype, shape: as it is stored there.
        start: what it begins with.   fresh: the base has none of this name.
        rows: (indices, rows that take the place of its own).
        added: updates, and where they go.   plain: vectors that are added whole.
    """

    key: Key
    dtype: str
    shape: tuple[int, ...]
    start: Tensor
    fresh: bool = False
    rows: tuple[Any, Tensor] | None = None
    added: list[tuple[Target, Place]] = field(default_factory=list)
    plain: list[tuple[Scaled, Place]] = field(default_factory=list)


@dataclass(eq=False)
class Changes:
    """All changes of a model, and what its configs must say then.

    Args:
        tensors: by key.   configs: component -> settings to replace.   notes: what the user should read.
        kept_tied: the head gets what its embedding gets, and stays tied to it.
    """

    checkpoint: Checkpoint
    adapter: Adapter
    tensors: dict[Key, Change] = field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    kept_tied: bool = False

    @cached_property
    def copies(self) -> list[str]:
        """Tensors that are the embedding once more."""
        return copies(self.checkpoint)

    def of(self, key: Key) -> Change:
        """The change of a tensor that the base has."""
        if key not in self.tensors:
            tensor = self.checkpoint.tensors[key]
            self.tensors[key] = Change(key, tensor.dtype, tensor.shape, tensor)
        return self.tensors[key]


def changes(checkpoint: Checkpoint, adapter: Adapter) -> Changes:
    """What an adapter (under the names of this model, see `places.home`) changes in it.

    Raises:
        IncompatibleError: it is of another model, or holds what cannot be added to weights.
    """
    found = Changes(checkpoint, adapter)
    places = Places(checkpoint, adapter)
    untied = _untie(found)
    for target in adapter.slots:
        if untied is not None and target.path.rpartition(".")[2] == "lm_head":
            found.tensors[untied].added.append((target, Place(untied)))
            continue
        for place in places.of(target):
            found.of(place.key).added.append((target, place))
    for key, tensor in adapter.extras.items():
        _whole(found, places, key, tensor)
    for target, bias in adapter.biases.items():
        _bias(found, places, target, bias)
    if untied is not None:
        _check_rows(found, untied)
    return found


def _untie(found: Changes) -> Key | None:
    """A separate head for a model with tied weights, if the adapter changes the head or the embedding alone.

    transformers ties the head to the input embedding. An update of one of them was trained while the other
    stayed as it was; what becomes of token rows, PEFT itself gives to both.
    """
    source = embedding(found.checkpoint)
    if source is None or not is_tied(found.checkpoint) or not _alone(found.adapter, source[1]):
        return None
    own, name = head(found.checkpoint), source[1].removesuffix(".weight")
    if _both(found.adapter, source[1], head_name(found.checkpoint)):
        found.kept_tied = own is None
        return None
    plain = is_plain(found.checkpoint, source)
    last = name.rpartition(".")[2]
    if not plain and all(target.path.rpartition(".")[2] != last for target in found.adapter):
        found.notes.append(f"the head changes with {printable(name)}, to which it is tied")
        return None
    if not plain or found.checkpoint.config("model").get("is_encoder_decoder"):
        raise IncompatibleError(
            f"{printable(found.adapter.name)} changes an embedding that {printable(found.checkpoint.name)} "
            f"ties to its head, which is more than this embedding: leave it out with {say('exclude')}."
        )
    found.configs["model"] = {TYING: False}
    found.notes.append(f"the head is no longer tied to {printable(name)}, as only one of them changes")
    if own is not None:  # in the file, too
        return None
    tensor, key = found.checkpoint.tensors[source], ("model", HEAD)
    found.tensors[key] = Change(key, tensor.dtype, tensor.shape, tensor, fresh=True)
    return key


def _check_rows(found: Changes, untied: Key) -> None:
    """Raises IncompatibleError: the embedding gets other tokens than the head that was tied to it."""
    source = embedding(found.checkpoint)
    own, new = found.tensors[untied], found.tensors.get(source) if source else None
    if source and new is not None and new.shape != own.shape:
        raise IncompatibleError(
            f"{printable(found.adapter.name)} gives {printable(source[1])} {new.shape[0]} tokens, and holds "
            f"no head with as many: the head that {printable(found.checkpoint.name)} ties to it has "
            f"{own.shape[0]}. Save the adapter with its head, too: save_embedding_layers=True in PEFT."
        )


def _both(adapter: Adapter, name: str, own: str) -> bool:
    """Whether the embedding and the head become the same tensor, which can stay one."""
    ends = f".{own}", f".{'.'.join(name.split('.')[-2:])}"
    one, other = (next((t for k, t in adapter.extras.items() if f".{k}".endswith(e)), None) for e in ends)
    updated = {f".{target.path.rpartition('.')[2]}.weight" for target in adapter.slots}
    return one is not None and other is not None and updated.isdisjoint(ends) and same(one, other)


def _alone(adapter: Adapter, name: str) -> bool:
    """Whether an adapter changes the embedding, or the head, by an update of its own or as a whole."""
    ours = {name.removesuffix(".weight").rpartition(".")[2], "lm_head"}
    if any(target.path.rpartition(".")[2] in ours for target in adapter.slots):
        return True
    owners = (
        beside.owner(key, adapter)
        for key in adapter.extras
        if beside.role(key, adapter) in ("head", "embedding")
    )
    return any(owner.removesuffix(".base_layer").rpartition(".")[2] in ours for owner in owners)


def _whole(found: Changes, places: Places, key: str, tensor: Tensor) -> None:
    """A tensor beside the pairs: token rows, a head, a bias, or what is added to one of these."""
    adapter = found.adapter
    match beside.role(key, adapter):
        case "tokens":
            _tokens(found, places, key, tensor)
        case "delta":
            _delta(found, places, key, tensor)
        case "unknown":
            raise IncompatibleError(
                f"{printable(adapter.name)} holds {printable(key)}, and what it means for a model cannot be "
                f"told: leave it out first, with loramerge convert --extras drop."
            )
        case _:
            _replaced(found, places, key, tensor)


def _replaced(found: Changes, places: Places, key: str, tensor: Tensor) -> None:
    name = unmarked(key).removeprefix(PREFIX).replace(".base_layer.", ".")
    path, _, parameter = name.rpartition(".")
    if name in found.copies and _is_copy(found, name, tensor):
        return
    if path == "lm_head" and ("model", HEAD) in found.tensors:
        there: Key = "model", HEAD
    elif (known := places.tensor("model", path, parameter)) is not None:
        there = known[0]
    else:
        there = places.part("model"), name
        found.tensors[there] = Change(there, _usual(found.checkpoint), tensor.shape, tensor, fresh=True)
        found.notes.append(f"{printable(name)} is new: the base model has none")
        _labels(found, path, tensor)
        return
    change = found.tensors[there] if there in found.tensors else found.of(there)
    if change.shape != tensor.shape:
        _resized(found, change, tensor)
    change.start, change.shape = tensor, tensor.shape


def _is_copy(found: Changes, name: str, tensor: Tensor) -> bool:
    """Whether a tensor is the embedding once more, which the model takes from there."""
    source = embedding(found.checkpoint)
    if name == head_name(found.checkpoint) or source is None:
        return found.kept_tied
    own = found.adapter.extras.get(PREFIX + source[1])
    return own is not None and same(own, tensor)


def _labels(found: Changes, path: str, tensor: Tensor) -> None:
    """A new head of a classifier says how many labels there are."""
    config = found.checkpoint.config("model")
    known = config.get("id2label")
    count = len(known) if isinstance(known, Mapping) else config.get("num_labels", 2)
    if (
        path.rpartition(".")[2] in ("score", "classifier")
        and len(tensor.shape) == 2
        and count != tensor.shape[0]
    ):
        names = [f"LABEL_{i}" for i in range(tensor.shape[0])]
        said = {
            "id2label": {str(i): n for i, n in enumerate(names)},
            "label2id": {n: i for i, n in enumerate(names)},
        }
        found.configs.setdefault("model", {}).update(said)


def _resized(found: Changes, change: Change, tensor: Tensor) -> None:
    """An embedding, or head, with other tokens than the base has."""
    last = change.key[1].rpartition(".")[0].rpartition(".")[2]
    if last not in (*INPUTS, "lm_head") or change.shape[1:] != tensor.shape[1:]:
        raise IncompatibleError(
            f"{printable(change.key[1])} is {list(tensor.shape)} in {printable(found.adapter.name)} and "
            f"{list(change.shape)} in {printable(found.checkpoint.name)}: it was trained on another model."
        )
    found.configs.setdefault("model", {})["vocab_size"] = tensor.shape[0]
    found.notes.append(
        f"{printable(change.key[1])} has {tensor.shape[0]} tokens now: use the tokenizer of the adapter"
    )


def _tokens(found: Changes, places: Places, key: str, tensor: Tensor) -> None:
    path = unmarked(key).removeprefix(PREFIX).removesuffix(f".{beside.TOKENS}").removesuffix(".token_adapter")
    said = beside.token_ids(found.adapter, path)
    known = places.tensor("model", path, "weight")
    if not said or len(said) != tensor.shape[0] or known is None:
        raise IncompatibleError(
            f"{printable(found.adapter.name)} holds token rows of {printable(path)}, and its config does not "
            "say which tokens they are, or the model has no such embedding."
        )
    change = found.of(known[0])
    if tensor.shape[1:] != change.shape[1:] or not all(0 <= i < change.shape[0] for i in said):
        raise IncompatibleError(f"The token rows of {printable(path)} do not fit the embedding of the model.")
    change.rows = (said, tensor)
    if known[0] == embedding(found.checkpoint) and is_tied(found.checkpoint):
        own = head(found.checkpoint)
        if own is not None:  # the same tensor, which the file holds twice
            found.of(own).rows = (said, tensor)


def _delta(found: Changes, places: Places, key: str, tensor: Tensor) -> None:
    """`.diff` of a weight and `.diff_b` of a bias, which image adapters add."""
    module, _, end = key.rpartition(".")
    parameter = "bias" if end in ("diff_b", "b_norm") else "weight"
    for target in _flat(module):
        if (known := places.tensor(target.component, target.path, parameter)) is not None:
            place = Place(known[0], None, known[1])
            found.of(known[0]).plain.append((Scaled(tensor, 1.0), place))
            return
    raise IncompatibleError(
        f"{printable(found.checkpoint.name, 1000)} has no module {printable(module)}, which "
        f"{printable(found.adapter.name)} changes."
    )


def _flat(module: str) -> Iterator[Target]:
    """What a flat name of kohya can mean."""
    if (split := FLAT.match(f"{module}.")) is None:
        return
    component = COMPONENTS[split["prefix"]]
    parts = ("text_encoder", "t5") if component.startswith("text") else ("unet", "transformer")
    for part in parts:
        if path := models.by_flat(part).get(split["flat"]):
            yield Target(path, component=component if component.startswith("text") else part)


def _bias(found: Changes, places: Places, target: Target, bias: Scaled) -> None:
    known = places.tensor(target.component, target.path, "bias")
    if known is None or found.checkpoint.tensors[known[0]].shape != bias.tensor.shape:
        raise IncompatibleError(
            f"{printable(found.adapter.name)} adds to the bias of {printable(target.path)}, which has "
            f"none of that size in {printable(found.checkpoint.name, 1000)}."
        )
    found.of(known[0]).plain.append((bias, Place(known[0], None, known[1])))


def _usual(checkpoint: Checkpoint) -> str:
    """The type of most weights of a model, for a tensor that it gets."""
    kinds = [t.dtype for t in checkpoint.tensors.values() if len(t.shape) > 1 and t.dtype in dtypes.FLOATS]
    return max(sorted(set(kinds)), key=kinds.count, default="F32")


def scaled(adapter: Adapter, factor: float) -> Adapter:
    """The adapter at another strength. Tensors that replace others cannot have a strength.

    Raises:
        IncompatibleError: it holds tensors that take the place of the model's.
    """
    if factor == 1.0:
        return adapter
    if taking := [key for key in adapter.extras if beside.role(key, adapter) != "delta"]:
        raise IncompatibleError(
            f"{printable(adapter.name)} holds tensors that take the place of the model's own "
            f"({beside.told(taking)}): these have no strength, and what was there is not known."
        )
    slots = {t: replace(s, scale=s.scale * factor) for t, s in adapter.slots.items()}
    biases = {t: replace(b, scale=b.scale * factor) for t, b in adapter.biases.items()}
    extras = {key: _times(tensor, factor) for key, tensor in adapter.extras.items()}
    return replace(adapter, slots=slots, biases=biases, extras=extras)


def _times(tensor: Tensor, factor: float) -> Tensor:
    from loramerge.formats.files.views import View

    return View((tensor,), tensor.shape, "F64", lambda array: factor * np.asarray(array, np.float64))
