"""Two LoRAs of an image model into one file for ComfyUI: a character at 0.8 and a style at 0.6."""

import numpy as np
from safetensors.numpy import save_file

import loramerge as lm


def toy(name: str, seed: int) -> str:
    """A file such as sd-scripts trains, only small; take your own instead."""
    rng, tensors = np.random.default_rng(seed), {}
    for part in ("q", "k", "v"):
        module = f"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_{part}"
        tensors[f"{module}.lora_down.weight"] = rng.standard_normal((4, 320), dtype=np.float32)
        tensors[f"{module}.lora_up.weight"] = rng.standard_normal((320, 4), dtype=np.float32) / 100
        tensors[f"{module}.alpha"] = np.array(4.0, dtype=np.float32)
    save_file(tensors, name)
    return name


sources = {toy("character.safetensors", 1): 0.8, toy("style.safetensors", 2): 0.6}
merge = lm.combine(sources, out="both.safetensors", dtype="float16", consumer="comfyui")
print(merge)
print(lm.check("both.safetensors", "comfyui") or "ComfyUI loads it as it is meant")
