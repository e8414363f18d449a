"""Tiny adapters of GPT-2, whose layers the converter of llama.cpp turns."""

import numpy as np

from tests.helpers.files import folder

SQUARE = "transformer.h.0.attn.c_proj"
SIZES = {SQUARE: (6, 6), "transformer.h.0.attn.c_attn": (18, 6), "transformer.h.0.mlp.c_fc": (24, 6)}
SIZES |= {"transformer.h.0.mlp.c_proj": (6, 24)}
CONFIG = {
    "base_model_name_or_path": "openai-community/gpt2",
    "fan_in_fan_out": True,
    "lora_alpha": 4,
    "peft_type": "LORA",
    "r": 2,
    "target_modules": ["c_attn", "c_fc", "c_proj"],
}


def turning(place, seed, **config):
    """A folder of PEFT with all layers of one block."""
    rng, tensors = np.random.default_rng(seed), {}
    for path, (outs, ins) in SIZES.items():
        stem = f"base_model.model.{path}.lora_"
        tensors[f"{stem}A.weight"] = rng.standard_normal((2, ins)).astype("f4")
        tensors[f"{stem}B.weight"] = rng.standard_normal((outs, 2)).astype("f4")
    return folder(place, tensors, config=CONFIG | config)
