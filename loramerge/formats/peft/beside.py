"""PEFT's names and settings of what lies beside the pairs: heads, biases, embeddings, token rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from typing import Any, Literal

from loramerge.adapters.adapter import Adapter, Scaled, Tensor
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, printable
from loramerge.formats.forms.beside import ADDED
from loramerge.formats.peft.names import PREFIX, parse

Role = Literal["head", "bias", "embedding", "tokens", "delta", "unknown"]

TOKENS = "trainable_tokens_delta"
EMBEDDINGS = ("embed_tokens", "lm_head", "word_embeddings", "wte")  # saved whole, without any setting
LABELS = ("id2label", "label2id", "num_labels")
BASE = ".base_layer"  # what PEFT puts between a module that it adapts and its own tensors


def heads(adapter: Adapter) -> list[str]:
    """What its config lists as trained whole."""
    listed = adapter.config.get("modules_to_save")
    if not isinstance(listed, list | set | tuple):  # a live config may hold a set
        return []
    return [name for name in listed if isinstance(name, str)]


def owner(key: str, adapter: Adapter) -> str:
    """The module that a tensor is a part of: the whole head, where the config lists it."""
    path = key.removeprefix(PREFIX).rpartition(".")[0].removesuffix(BASE)
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        if any(f".{'.'.join(parts[:end])}".endswith(f".{name}") for name in heads(adapter)):
            return ".".join(parts[:end])
    return path


def role(key: str, adapter: Adapter) -> Role:
    """What a tensor is for."""
    if key.endswith(TOKENS):
        return "tokens"
    if adapter.dialect != "peft" and key.endswith(ADDED):
        return "delta"
    module = owner(key, adapter)
    if not module or not key.startswith(PREFIX):
        return "unknown"
    if any(f".{module}".endswith(f".{name}") for name in heads(adapter)):
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
    said = adapter.config.get("trainable_token_indices")
    if not isinstance(said, Mapping):
        return said
    module = module.removesuffix(".token_adapter")
    return next((ids for name, ids in said.items() if f".{module}".endswith(f".{name}")), said)


def token_ids(config: Mapping[str, Any], path: str) -> list[int]:
    """The tokens whose rows an embedding has of its own; none where the config does not say them.

    >>> token_ids({"trainable_token_indices": {"embed_tokens": [3, 5]}}, "model.embed_tokens")
    [3, 5]
    >>> token_ids({"trainable_token_indices": ["x"]}, "model.embed_tokens")
    []
    """
    said = config.get("trainable_token_indices")
    if isinstance(said, Mapping):
        said = next((ids for name, ids in said.items() if f".{path}".endswith(f".{name}")), None)
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
                modules.add(_listed(owner(key, adapter), adapter))
            case "tokens":
                found["trainable_token_indices"] = adapter.config.get("trainable_token_indices")
            case "bias":
                found["bias"] = adapter.config["bias"]
    return {**found, **({"modules_to_save": sorted(modules)} if modules else {})}


def _listed(module: str, adapter: Adapter) -> str:
    """How the config names a head; its full path where it does not."""
    return next((name for name in heads(adapter) if f".{module}".endswith(f".{name}")), module)


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
