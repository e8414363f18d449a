"""Synthetic adapters of real shapes, written as PEFT folders."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np

from loramerge.formats.files.safetensors import Writer

Shapes = dict[str, tuple[int, int]]  # module -> (out, in)


def llama(hidden: int, inner: int, layers: int, kv: int | None = None) -> Shapes:
    """All linear layers of a Llama."""
    kv = kv or hidden
    layer = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    return {f"model.layers.{n}.{name}": shape for n in range(layers) for name, shape in layer.items()}


LLAMA_7B = llama(4096, 11008, 32)  # 224 modules
LAYER_7B = llama(4096, 11008, 1)
SMALL = llama(256, 688, 1)  # to see that a benchmark runs
LAYER_70B = llama(8192, 28672, 1, kv=1024)


def write(folder: Path, shapes: Shapes, seed: int, rank: int = 16) -> Path:
    """A random bfloat16 adapter: columns of falling length, as trained ones have."""
    folder.mkdir(parents=True)
    layout = {}
    for module, (outs, ins) in shapes.items():
        layout[f"base_model.model.{module}.lora_A.weight"] = ("BF16", (rank, ins))
        layout[f"base_model.model.{module}.lora_B.weight"] = ("BF16", (outs, rank))
    rng = np.random.default_rng(seed)
    fall = 0.8 ** np.arange(rank, dtype=np.float32)
    with Writer(folder / "adapter_model.safetensors", layout, {"format": "pt"}) as writer:
        for key, (_, shape) in layout.items():
            values = rng.standard_normal(shape, dtype=np.float32) * 0.02
            values *= fall[:, None] if "lora_A" in key else fall
            writer.write(key, values.astype(ml_dtypes.bfloat16))
    names = sorted({module.rpartition(".")[2] for module in shapes})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": names}
    config |= {"base_model_name_or_path": "synthetic"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
