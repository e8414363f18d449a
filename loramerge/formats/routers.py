"""Files whose factors a gate weighs for each input: recognised by tensors, and never read as one adapter."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from loramerge.errors import IncompatibleError, LoramergeError, printable
from loramerge.formats.files.json import read_object
from loramerge.hub.escape import shell

OWN = ("activate_r", "top_k", "bias_u")  # settings that a plain LoRA does not have


class Routed(NamedTuple):
    """A system with a gate.

    Args:
        mark: a part of a key that only such files have, which is looked for first.
        key: a pattern of such a key; its group is the module, if it is of one.
        beside: how the key of a factor begins that lies in the same module, or in any if that is not known.
        type: its name as a PEFT type, if it has one.
    """

    name: str
    words: str
    mark: str
    key: str
    beside: str
    type: str = ""

    def owns(self, keys: list[str]) -> bool:
        """Whether a file with these keys is of it."""
        if not any(self.mark in key for key in keys):
            return False
        found = [match for key in keys if (match := re.fullmatch(self.key, key, re.DOTALL))]
        starts = tuple(f"{match[1]}{self.beside}" for match in found if match.re.groups)
        if any(not match.re.groups for match in found):
            return any(self.beside in key for key in keys)
        return bool(starts) and any(key.startswith(starts) for key in keys)


ROUTED = (
    Routed("meteora", "MeteoRA", "moe_gate", r"(.+)\.moe_gate\.weight", ".lora_A."),
    Routed("loramoe", "LoRAMoE", "lora_route", r"(.+)\.lora_route\.weight", ".lora_A0."),
    Routed("smora", "SMoRA", "lora_biases", r"(.+)\.lora_biases(?:\.\w+)?", ".lora_A.", "SRMOLE"),
    Routed("lora-mixer", "LoRA-Mixer", ".router.weight", r"(.+)\.router\.weight", ".lora_A.expert0."),
    Routed("flylora", "FlyLoRA", "lora_topk_bias", r"(.+)\.lora_topk_bias(?:\.\w+)?", ".lora_A."),
    Routed("wavllm", "WavLLM", "_lora_A", r"(.+\.w[qkvo])_lora_A", "_lora_A"),
    Routed("dmoerm", "DMoERM", "base_value_head", r"(?:.+\.)?base_value_head\.weight", ".lora_A."),
)


class RoutedError(IncompatibleError):
    """A source is a file whose factors a gate weighs.

    Args:
        name: how the user called it.   system: the name of its system.
    """

    def __init__(self, message: str, name: str = "", system: str = "") -> None:
        super().__init__(message)
        self.name, self.system = name, system


def system_of(keys: Iterable[str], config: Mapping[str, Any] | None = None) -> Routed | None:
    """The system whose file this is, if it is one of them.

    >>> system_of(["h.0.q.lora_A.weight", "h.0.q.moe_gate.weight"]).words
    'MeteoRA'
    >>> system_of(["h.0.q.lora_A.weight", "h.0.moe_gate.weight"])
    """
    names = list(keys)
    for each in ROUTED:
        if (each.type and (config or {}).get("peft_type") == each.type) or each.owns(names):
            return each
    return None


def refuse_routed(keys: Iterable[str], name: str, config: Mapping[str, Any] | None = None) -> None:
    """Refuse a file that is not one adapter but several under a gate.

    Raises:
        RoutedError: it is of one of these systems.
    """
    if found := system_of(keys, config):
        raise RoutedError(
            f"{printable(name)} is of {found.words}: a gate weighs its units for each input, so that no "
            f"single adapter does the same. {way(name, found.name != 'wavllm')}",
            name,
            found.name,
        )


def marked(config: Mapping[str, Any]) -> bool:
    """Whether a config says that a gate chooses among units."""
    return any(config.get(name) for name in OWN) or config.get("peft_type") == "SRMOLE"


def way(name: str, scaled: bool = True) -> str:
    """The command that makes a bundle of such a file, in a sentence; `scaled`: its scale goes by an alpha."""
    place = Path(name)
    asks = scaled and os.path.exists(place) and not _says_alpha(place)
    words = ["--allow-pickle"] * _pickled(place) + ["--alpha A"] * asks
    command = " ".join(["loramerge route", shell(name), *words, "-o bundle"])
    return f"`{command}` keeps units and gate{', with its training alpha for A' if asks else ''}."


def _pickled(place: Path) -> bool:
    names = os.listdir(place) if os.path.isdir(place) else [place.name] if os.path.isfile(place) else []
    return bool(names) and not any(each.endswith(".safetensors") for each in names)


def _says_alpha(place: Path) -> bool:
    config = place / "adapter_config.json"
    try:
        return os.path.isfile(config) and "lora_alpha" in read_object(config, str(config))
    except LoramergeError:  # whoever reads it says what is wrong with it
        return False
