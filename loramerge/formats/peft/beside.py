"""PEFT's names and settings of what lies beside the pairs: heads, biases, embeddings, token rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from loramerge.adapters.adapter import Adapter, Scaled, Tensor
from loramerge.adapters.target import Target
from loramerge.errors import printable
from loramerge.formats.peft.names import PREFIX, parse

Role = Literal["head", "bias", "embedding", "tokens", "delta", "unknown"]

DELTAS = (".diff", ".diff_b", ".w_norm", ".b_norm")  # what image adapters add to biases and norms

TOKENS = "trainable_tokens_delta"
EMBEDDINGS = ("embed_tokens", "lm_head", "word_embeddings", "wte")  # saved whole, without any setting
LABELS = ("id2label", "label2id", "num_labels")


def heads(adapter: Adapter) -> list[str]:
    """What its config lists as trained whole."""
    listed = adapter.config.get("modules_to_save")
    if not isinstance(listed, list | set | tuple):  # a live config may hold a set
        return []
    return [name for name in listed if isinstance(name, str)]


def owner(key: str, adapter: Adapter) -> str:
    """The module that a tensor is a part of: the whole head, where the config lists it."""
    path = key.removeprefix(PREFIX).rpartition(".")[0]
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        if any(f".{'.'.join(parts[:end])}".endswith(f".{name}") for name in heads(adapter)):
            return ".".join(parts[:end])
    return path


def role(key: str, adapter: Adapter) -> Role:
    """What a tensor is for."""
    if key.endswith(TOKENS):
        return "tokens"
    if adapter.dialect != "peft" and key.endswith(DELTAS):
        return "delta"
    module = owner(key, adapter)
    if not module or not key.startswith(PREFIX):
        return "unknown"
    if any(f".{module}".endswith(f".{name}") for name in heads(adapter)):
        return "head"
    if module.removesuffix(".base_layer").rpartition(".")[2] in EMBEDDINGS:
        return "embedding"
    return "bias" if key.endswith(".bias") and adapter.config.get("bias", "none") != "none" else "head"


def meaning(adapter: Adapter, what: Role) -> Any:
    """What must agree before two tensors of this role can be averaged: labels, or token ids."""
    if what == "tokens":
        return adapter.config.get("trainable_token_indices")
    if what == "head":
        return [adapter.config.get(key) for key in LABELS]
    return None


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
