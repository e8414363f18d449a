"""The programs that load adapters: what each of them reads, refuses and ignores. One small file for each."""

from __future__ import annotations

from loramerge.consumers.comfyui import COMFYUI
from loramerge.consumers.consumer import Consumer, Finding
from loramerge.consumers.diffusers import DIFFUSERS
from loramerge.consumers.facts import Facts, Module
from loramerge.consumers.llama_cpp import LLAMA_CPP
from loramerge.consumers.mlx import MLX
from loramerge.consumers.peft import PEFT
from loramerge.consumers.sglang import SGLANG
from loramerge.consumers.transformers import TRANSFORMERS
from loramerge.consumers.vllm import VLLM
from loramerge.errors import UsageError
from loramerge.formats.peft.names import UNKNOWN

__all__ = ["CONSUMERS", "Consumer", "Facts", "Finding", "Module", "find", "meant"]

CONSUMERS = {c.name: c for c in (PEFT, TRANSFORMERS, VLLM, SGLANG, LLAMA_CPP, DIFFUSERS, COMFYUI, MLX)}
IMAGES = ("diffusers", "comfyui")
SERVERS = ("peft", "transformers", "vllm", "sglang", "llama.cpp")
MEANT = {"peft": SERVERS, "loralib": SERVERS, "mlx": ("mlx",), UNKNOWN: ("peft", "diffusers")}


def find(name: str) -> Consumer:
    """The consumer of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in CONSUMERS:
        raise UsageError(f"{name!r} is not one of {', '.join(CONSUMERS)}.")
    return CONSUMERS[name]


def meant(facts: Facts) -> list[Consumer]:
    """The consumers that make sense for an adapter, by its tensor names."""
    return [CONSUMERS[name] for name in MEANT.get(facts.dialect, IMAGES)]
