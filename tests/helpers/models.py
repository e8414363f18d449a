"""Small whole models on the disk, as transformers writes them: shards, an index, a config. No torch."""

import json

import ml_dtypes
import numpy as np

from loramerge.checkpoints.open import open_checkpoint
from loramerge.formats.files.safetensors import Writer

BF16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = {  # of a model that looks like Llama
    "model.embed_tokens.weight": (24, 16),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
    "model.layers.0.mlp.up_proj.weight": (40, 16),
    "model.layers.0.input_layernorm.weight": (16,),
    "model.layers.1.self_attn.q_proj.weight": (16, 16),
    "model.layers.1.mlp.up_proj.weight": (40, 16),
    "model.norm.weight": (16,),
    "lm_head.weight": (24, 16),
}
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
NAMES = {"F32": np.float32, "F64": np.float64, "F16": np.float16, "BF16": BF16}


def random_model(seed=0, shapes=SHAPES, dtype=np.float32):
    """Name -> numbers."""
    rng = np.random.default_rng(seed)
    return {key: rng.standard_normal(shape).astype(dtype) for key, shape in shapes.items()}


def save_model(folder, tensors, config=CONFIG, shards=1, metadata=None):
    """Write a folder of that many shards, or one file if its name ends in .safetensors."""
    if folder.suffix == ".safetensors":
        return _write(folder, tensors, metadata or {})
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    keys = list(tensors)
    cuts = [keys[i::shards] for i in range(shards)]
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    names = names if shards > 1 else ["model.safetensors"]
    for name, part in zip(names, cuts, strict=True):
        _write(folder / name, {key: tensors[key] for key in part}, metadata or {"format": "pt"})
    if shards > 1:
        table = {key: name for name, part in zip(names, cuts, strict=True) for key in part}
        size = sum(array.nbytes for array in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(table.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _write(path, tensors, metadata):
    layout = {key: (_kind(array), array.shape) for key, array in tensors.items()}
    with Writer(path, layout, metadata) as writer:
        for key, array in tensors.items():
            writer.write(key, array)
    return path


def _kind(array):
    known = {**NAMES, "F8_E4M3": ml_dtypes.float8_e4m3fn, "I64": np.int64, "U8": np.uint8}
    return next(name for name, dtype in known.items() if np.dtype(dtype) == array.dtype)


def read_model(path):
    """Name -> numbers, of all its components."""
    return {key: np.asarray(tensor.read()) for (_, key), tensor in open_checkpoint(path).tensors.items()}
