"""PEFT's names and settings of what lies beside the pairs: heads, biases, embeddings, token rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

from loramerge.adapters.adapter import Adapter, Scaled, Tensor
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, printable
from loramerge.formats.forms.beside import ADDED
from loramerge.formats.peft.names import PREFIX, parse

Role = Literal["head", "bias", "embedding", "tokens", "delta", "unknown"]

TOKENS, TOKENS_OF = "trainable_tokens_delta", "trainable_token_indices"
EMBEDDINGS = ("embed_tokens", "lm_head", "word_embeddings", "wte")  # saved whole, without any setting
LABELS = ("id2label", "label2id", "num_labels")
BASE = ".base_layer"  # what PEFT puts between a module that it adapts and its own tensors


class Listed:
    """Names that a config lists, each for all modules whose path ends so; found at once, however many.

    >>> Listed(["head", "a.norm"]).named("model.a.norm"), Listed(["head"]).named("ahead")
    ('a.norm', None)
    """

    def __init__(self, names: Iterable[str]) -> None:
        texts = dict.fromkeys(name for name in names if isinstance(name, str))
        self._places = {name: place for place, name in enumerate(texts)}
        self._lengths = sorted({name.count(".") + 1 for name in self._places})

    def named(self, path: str) -> str | None:
        """The first of them that a path ends with."""
        parts = path.split(".")
        ends = (".".join(parts[-length:]) for length in self._lengths if length <= len(parts))
        found = (end for end in ends if end in self._places)
        return min(found, key=self._places.__getitem__, default=None)

    def holder(self, path: str) -> str | None:
        """The longest beginning of a path that one of them names: the module that a part of it is in."""
        parts = path.split(".")
        wholes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((whole for whole in wholes if self.named(whole) is not None), None)


_LISTED: WeakKeyDictionary[Adapter, dict[str, Listed]] = WeakKeyDictionary()


def _listed(adapter: Adapter, setting: str) -> Listed:
    known = _LISTED.setdefault(adapter, {})
    if setting not in known:
        said = adapter.config.get(setting)
        known[setting] = Listed(said if isinstance(said, list | set | tuple | Mapping) else ())
    return known[setting]


def heads(adapter: Adapter) -> Listed:
    """What its config lists as trained whole."""
    return _listed(adapter, "modules_to_save")


def owner(key: str, adapter: Adapter) -> str:
    """The module that a tensor is a part of: the whole head, where the config lists it."""
    path = key.removeprefix(PREFIX).rpartition(".")[0].removesuffix(BASE)
    return heads(adapter).holder(path) or path


def role(key: str, adapter: Adapter) -> Role:
    """What a tensor is for."""
    if key.endswith(TOKENS):
        return "tokens"
    if adapter.dialect != "peft" and key.endswith(ADDED):
        return "delta"
    module = owner(key, adapter)
    if not module or not key.startswith(PREFIX):
        return "unknown"
    if heads(adapter).named(module) is not None:
        return "head"
    if module.rpartition(".")[2] in EMBEDDINGS:
        return "embedding"
    return "bias" if key.endswith(".bias") and adapter.config.get("bias", "none") != "none" else "head"


def meaning(adapter: Adapter, what: Role, module: str = "") -> Any:
    """What must agree before two tensors of this role can be averaged: labels, or token ids.

    None where it is no matter, or not known.
    """
    if what == "tokens":
        return _token_ids(adapter, module)
    return labels(adapter) if what == "head" and is_labelled(module) else None


def _token_ids(adapter: Adapter, module: str) -> Any:
    """A list, or one for each embedding; an adapter may list embeddings that others do not."""
    said = adapter.config.get(TOKENS_OF)
    if not isinstance(said, Mapping):
        return said
    module = module.removesuffix(".token_adapter")
    name = _listed(adapter, TOKENS_OF).named(module)
    return said if name is None else said[name]


def token_ids(adapter: Adapter, path: str) -> list[int]:
    """The tokens whose rows an embedding has of its own; none where the config does not say them.

    >>> said = Adapter("a", {}, config={"trainable_token_indices": {"embed_tokens": [3, 5]}})
    >>> token_ids(said, "model.embed_tokens")
    [3, 5]
    >>> token_ids(Adapter("a", {}, config={"trainable_token_indices": ["x"]}), "model.embed_tokens")
    []
    """
    said = adapter.config.get(TOKENS_OF)
    if isinstance(said, Mapping):
        name = _listed(adapter, TOKENS_OF).named(path)
        said = None if name is None else said[name]
    if isinstance(said, list) and all(type(each) is int and each >= 0 for each in said):
        return said
    return []


def is_labelled(module: str) -> bool:
    """Whether the rows of a head mean labels: not if they are tokens, or it is a norm."""
    last = module.removesuffix(BASE).rpartition(".")[2]
    return last not in EMBEDDINGS and "norm" not in last.lower()


def labels(adapter: Adapter) -> Mapping[str, str] | None:
    """Row of its head -> label; None where nobody knows, or only the number of them."""
    found = adapter.labels or label_map(adapter.config)
    unsaid = all(name == f"LABEL_{index}" for index, name in found.items())
    return None if unsaid else found


def label_map(config: Mapping[str, Any]) -> dict[str, str]:
    """Row of a head -> label, by a config or a part of it; empty where none says it.

    >>> label_map({"text_config": {"label2id": {"no": 0, "yes": 1}}})
    {'0': 'no', '1': 'yes'}
    """
    for each in (config, *(part for part in config.values() if isinstance(part, dict))):
        said, turned = (each.get(key) for key in LABELS[:2])
        if isinstance(said, Mapping) and said:
            return {str(index): str(name) for index, name in said.items()}
        if isinstance(turned, Mapping) and turned:
            return {str(index): str(name) for name, index in turned.items()}
    return {}


def spelt(key: str, adapter: Adapter, adapted: Set[str]) -> str:
    """A key as PEFT has it where these modules are adapted: biases and embeddings then are of their base.

    >>> from loramerge.adapters.adapter import Adapter
    >>> key = "base_model.model.h.0.q.base_layer.bias"
    >>> trained = Adapter("a", {}, config={"bias": "all"})
    >>> spelt(key, trained, {"h.0.q"}), spelt(key, trained, set())
    ('base_model.model.h.0.q.base_layer.bias', 'base_model.model.h.0.q.bias')
    """
    if not key.startswith(PREFIX) or key.endswith(TOKENS):
        return key
    path, _, last = key.removeprefix(PREFIX).rpartition(".")
    plain = path.removesuffix(BASE)
    own = plain in adapted and role(key, adapter) in ("bias", "embedding")
    return f"{PREFIX}{plain}{BASE * own}.{last}"


def respelt(adapter: Adapter, adapted: Set[str]) -> Adapter:
    """The adapter with its tensors beside the pairs as PEFT has them where these modules are adapted.

    Raises:
        IncompatibleError: one of them is there under both names.
    """
    extras = {spelt(key, adapter, adapted): tensor for key, tensor in adapter.extras.items()}
    if len(extras) < len(adapter.extras):
        twice = Counter(spelt(key, adapter, adapted) for key in adapter.extras).most_common(1)[0][0]
        raise IncompatibleError(f"{printable(adapter.name)} holds {printable(twice)} under two names.")
    return adapter if extras.keys() == adapter.extras.keys() else replace(adapter, extras=extras)


def settings(kept: Mapping[str, Adapter]) -> dict[str, Any]:
    """The settings under which PEFT loads these tensors (key -> the source that knows it)."""
    modules: set[str] = set()
    found: dict[str, Any] = {}
    for key, adapter in kept.items():
        match role(key, adapter):
            case "head":
                module = owner(key, adapter)
                modules.add(heads(adapter).named(module) or module)
            case "tokens":
                found[TOKENS_OF] = adapter.config.get(TOKENS_OF)
            case "bias":
                found["bias"] = adapter.config["bias"]
    return {**found, **({"modules_to_save": sorted(modules)} if modules else {})}


def parted(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of an `Adapter` that hold them: biases of lora_B apart from the rest."""
    names = {key: parse(key) for key in tensors}
    added = {key: name for key, name in names.items() if name and name.part == "bias"}
    return {
        "extras": {key: tensor for key, tensor in tensors.items() if key not in added},
        "biases": {Target(name.path, "bias"): Scaled(tensors[key], 1.0) for key, name in added.items()},
    }


def told(keys: Iterable[str], some: int = 3) -> str:
    """The first few of the keys, for a message."""
    listed = sorted(keys)
    more = f" and {len(listed) - some} more" if len(listed) > some else ""
    return ", ".join(printable(key, 80) for key in listed[:some]) + more
