"""The table of consumers: every name, and where its value lies. A file is loaded when it is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loramerge.adapters.table import Table
from loramerge.errors import UsageError

if TYPE_CHECKING:  # the command line takes the names, and must not wait for what they stand for
    from loramerge.consumers.consumer import Consumer
    from loramerge.consumers.facts import Facts


CONSUMERS: Table[Consumer] = Table(
    "loramerge.consumers",
    {
        "peft": "peft.PEFT",
        "transformers": "transformers.TRANSFORMERS",
        "vllm": "vllm.VLLM",
        "sglang": "sglang.SGLANG",
        "llama.cpp": "llama_cpp.LLAMA_CPP",
        "diffusers": "diffusers.DIFFUSERS",
        "comfyui": "comfyui.COMFYUI",
        "mlx": "mlx.MLX",
    },
)


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
    return [consumer for consumer in CONSUMERS.values() if facts.dialect in consumer.asked]
