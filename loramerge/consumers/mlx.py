"""mlx-lm: `load(..., adapter_path=…)`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loramerge.consumers.consumer import Consumer
from loramerge.consumers.facts import Facts, Module
from loramerge.consumers.finding import Finding
from loramerge.errors import printable

WEIGHTS = "adapters.safetensors"


def scale(config: Mapping[str, Any], module: Module) -> float:
    """`scale` of lora_parameters, as it is."""
    return float(config["lora_parameters"]["scale"])


def rules(facts: Facts) -> Iterator[Finding]:
    """What it needs of its own config, and of the shapes."""
    if not facts.folder:
        return
    if facts.weights != WEIGHTS:
        yield MLX.rejecting(
            f"it reads {WEIGHTS}, and the weights are in {printable(facts.weights)}",
            f"rename the file to {WEIGHTS}" if facts.weights.endswith(".safetensors") else "",
        )
    said = facts.config.get("lora_parameters")
    said = said if isinstance(said, dict) else {}
    lacks = [key for key in ("rank", "scale", "dropout") if key not in said]
    lacks += [key for key in ("num_layers",) if key not in facts.config]
    if lacks:
        yield MLX.rejecting(f"adapter_config.json does not give {', '.join(lacks)}", "add them")
    odd = {key: rank for key, rank in _ranks(facts).items() if rank != said.get("rank")}
    if odd and "rank" in said:
        key, rank = next(iter(odd.items()))
        why = f"lora_parameters says rank {printable(said['rank'])}, and {printable(key)} has {rank}"
        yield MLX.rejecting(why, "train or merge it at one rank")
    if strange := [k for k in facts.tensors if not k.endswith((".lora_a", ".lora_b")) and not MLX.keeps(k)]:
        yield MLX.rejecting(f"it takes no tensor such as {printable(strange[0])}", "remove it")


def _ranks(facts: Facts) -> dict[str, int]:
    """Columns of ``lora_a`` (in, r); experts are stored otherwise."""
    down = {key: shape[-1] for key, shape in facts.tensors.items() if key.endswith(".lora_a") and shape}
    up = {key: facts.tensors.get(f"{key[:-1]}b") for key in down}
    return {key: rank for key, rank in down.items() if (up[key] or ())[:1] == (rank,)}


MLX = Consumer(
    "mlx",
    "mlx-lm",
    "0.32.2",
    ("mlx",),
    True,
    scale,
    rules,
    formats=("mlx",),
    asked=("mlx",),
    beside={"magnitudes": r".*\.m"},
    remarks="refuses several ranks, a config that is not its own, and other tensors",
)
