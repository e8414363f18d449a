"""Adapters of every scaling that trainers write, as PEFT folders, and how they are merged."""

from __future__ import annotations

import math

import numpy as np

from tests.helpers.files import folder

LAYERS = {  # module -> (out, in)
    f"model.layers.{i}.{name}": shape
    for i in range(2)
    for name, shape in {
        "self_attn.q_proj": (8, 6),
        "self_attn.k_proj": (4, 6),
        "self_attn.v_proj": (4, 6),
        "mlp.down_proj": (6, 10),
    }.items()
}
BASE = "meta-llama/Llama-3.2-1B"
NAMES = ["q_proj", "k_proj", "v_proj", "down_proj"]
SCALINGS = {  # what a config may say; ranks by the last part of a module's name
    "plain": {"r": 4, "lora_alpha": 8},
    "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "mixed ranks": {"r": 4, "lora_alpha": 8, "rank_pattern": {"k_proj": 2, "down_proj": 6}},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"k_proj": 2},
        "alpha_pattern": {"k_proj": 6, "v_proj": 2},
        "use_rslora": True,
    },
}


def key(path: str, end: str) -> str:
    return f"base_model.model.{path}.{end}"


def ranks(config: dict) -> dict[str, int]:
    """Module -> its rank."""
    by_name = config.get("rank_pattern", {})
    return {path: by_name.get(path.rpartition(".")[2], config["r"]) for path in LAYERS}


def pairs(seed: int, config: dict, dtype=np.float32, wide: int = 1) -> dict[str, np.ndarray]:
    """Random factors of all modules, `wide` times as large."""
    rng, made = np.random.default_rng(seed), {}
    for path, rank in ranks(config).items():
        outs, ins = (wide * size for size in LAYERS[path])
        made[key(path, "lora_A.weight")] = rng.standard_normal((rank, ins)).astype(dtype)
        made[key(path, "lora_B.weight")] = rng.standard_normal((outs, rank)).astype(dtype)
    return made


def embedding(seed: int, rank: int) -> dict[str, np.ndarray]:
    """Factors of an embedding of 12 tokens."""
    rng = np.random.default_rng(seed)
    path = "model.embed_tokens"
    return {
        key(path, "lora_embedding_A"): rng.standard_normal((rank, 12)).astype(np.float32),
        key(path, "lora_embedding_B"): rng.standard_normal((6, rank)).astype(np.float32),
    }


def convolution(seed: int, rank: int, path: str = "conv") -> dict[str, np.ndarray]:
    """Factors of a convolution of kernel 3×3."""
    rng = np.random.default_rng(seed)
    return {
        key(path, "lora_A.weight"): rng.standard_normal((rank, 5, 3, 3)).astype(np.float32),
        key(path, "lora_B.weight"): rng.standard_normal((7, rank, 1, 1)).astype(np.float32),
    }


def write(
    place, seed: int = 0, config: dict | None = None, more: dict | None = None, wide: int = 1, **changes
):
    """A PEFT folder of that config; `changes` go into its adapter_config.json only."""
    said = SCALINGS["plain"] if config is None else config
    values = {**pairs(seed, said, wide=wide), **(more or {})}
    settings = {"peft_type": "LORA", "base_model_name_or_path": BASE, "target_modules": NAMES}
    return folder(place, values, config={**settings, **said, **changes})


def meant(config: dict, path: str) -> float:
    """The scale of a module by hand."""
    name = path.rpartition(".")[2]
    rank = config.get("rank_pattern", {}).get(name, config["r"])
    alpha = config.get("alpha_pattern", {}).get(name, config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
