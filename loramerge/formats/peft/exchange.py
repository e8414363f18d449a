"""PEFT's names with the factors of some layers exchanged, for a converter that turns these layers.

llama.cpp's converter turns the Conv1D layers of GPT-2 in a base and in an adapter alike, although PEFT stores
an adapter of a Conv1D as any other. Of ``lora_A = Bᵀ`` and ``lora_B = Aᵀ`` it makes the update that is meant.
PEFT would load square layers turned, so the config is of a type that PEFT refuses, and that names the reason.
The header of the weights says it too, for whoever reads these alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from loramerge.errors import SourceError, printable
from loramerge.formats.files.safetensors import File
from loramerge.formats.files.views import transposed
from loramerge.formats.peft.names import parse

KIND = "LORA_TURNED_FOR_LLAMA_CPP"  # peft_type, which PEFT's KeyError shows
SETTING = "turned"  # of the config: how the names of the layers end
HEADER = "loramerge_turned"  # of the weights' metadata: the same, with spaces between
EXCHANGED = {"down": (".lora_A.", ".lora_B."), "up": (".lora_B.", ".lora_A.")}


def is_turned(path: str, names: Collection[str]) -> bool:
    """Whether a module is one of these layers.

    >>> is_turned("h.0.attn.c_attn", {"c_attn"}), is_turned("wte", {"c_attn"})
    (True, False)
    """
    return path.rpartition(".")[2] in names


def turned_names(config: Mapping[str, Any], metadata: Mapping[str, str]) -> frozenset[str]:
    """How the names of the layers end that were exchanged; none in a usual adapter."""
    said = config.get(SETTING) if config.get("peft_type") == KIND else metadata.get(HEADER, "").split()
    return frozenset(map(str, said)) if isinstance(said, list) else frozenset()


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the adapter as PEFT has it."""
    if config.get("peft_type") != KIND:
        return dict(config)
    return {key: value for key, value in config.items() if key != SETTING} | {"peft_type": "LORA"}


def marked(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The config of an adapter with these layers exchanged."""
    return {**config, "peft_type": KIND, SETTING: sorted(names)}


def returned(config: Mapping[str, Any], file: File, name: str) -> tuple[dict[str, Any], File, Sequence[str]]:
    """Config and tensors as PEFT has them, and a sentence about it; unchanged in a usual adapter.

    Raises:
        SourceError: it is marked, and does not say which layers are exchanged.
    """
    names = turned_names(config, file.metadata)
    if not names and config.get("peft_type") == KIND:
        raise SourceError(
            f"{printable(name)} was written for llama.cpp, with the factors of some layers exchanged, and "
            f"its config does not list under {SETTING} which: write it again, for llama.cpp."
        )
    if not names:
        return dict(config), file, ()
    tensors = dict(file.tensors)
    for key in file.tensors:
        found = parse(key)
        if found and found.part in EXCHANGED and is_turned(found.path, names):
            other = key.replace(*EXCHANGED[found.part])
            if other not in file.tensors:
                raise SourceError(f"{printable(name)} holds {printable(key)} and no {printable(other)}.")
            tensors[key] = transposed(file.tensors[other])
    note = "it was written for llama.cpp with the factors of some layers exchanged, and is read as it was"
    return plain(config), replace(file, tensors=tensors), [note]
