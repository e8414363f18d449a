"""Files as the systems with a gate of their own save them, and what each does to a token, as a plain loop."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from loramerge.formats.files.safetensors import Writer

INS, OUTS = 9, 9
PATHS = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj")
PREFIX = "base_model.model."


def numbers(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def save(folder: Path, tensors, config) -> Path:
    folder.mkdir(parents=True)
    layout = {key: ("F32", array.shape) for key, array in tensors.items()}
    with Writer(folder / "adapter_model.safetensors", layout, {}) as writer:
        for key, array in tensors.items():
            writer.write(key, array)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    return folder


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def meteora(folder, ranks=(2, 5, 3), **config):
    """Unequal ranks; of 3 experts the 2 best, temperature as told."""
    alphas, config = 16, {"ranks": list(ranks), "lora_alpha": 16, "temperature": 15.0, **config}
    tensors, total = {}, sum(ranks)
    for n, path in enumerate(PATHS):
        tensors[f"{PREFIX}{path}.lora_A.weight"] = numbers(n, total, INS)
        tensors[f"{PREFIX}{path}.lora_B.weight"] = numbers(10 + n, OUTS, total)
        tensors[f"{PREFIX}{path}.moe_gate.weight"] = numbers(20 + n, len(ranks), INS)

    def loop(path, x):
        a, b, gate = (
            tensors[f"{PREFIX}{path}.{p}.weight"].astype(float) for p in ("lora_A", "lora_B", "moe_gate")
        )
        logits = gate @ x
        best = np.argsort(-logits)[:2]
        weights = softmax(logits[best] / config["temperature"])
        y = np.zeros(OUTS)
        for weight, e in zip(weights, best, strict=True):
            start = sum(ranks[:e])
            mine = slice(start, start + ranks[e])
            y += weight * alphas / ranks[e] * b[:, mine] @ (a[mine] @ x)
        return y

    return save(folder, tensors, config), loop


def loramoe(folder, count=4, rank=3):
    tensors = {}
    for n, path in enumerate(PATHS):
        tensors[f"{PREFIX}{path}.lora_route.weight"] = numbers(n, count, INS)
        for e in range(count):
            tensors[f"{PREFIX}{path}.lora_A{e}.weight"] = numbers(100 + 10 * n + e, rank, INS)
            tensors[f"{PREFIX}{path}.lora_B{e}.weight"] = numbers(200 + 10 * n + e, OUTS, rank)

    def loop(path, x):
        weights = softmax(tensors[f"{PREFIX}{path}.lora_route.weight"].astype(float) @ x)
        y = np.zeros(OUTS)
        for e in range(count):
            a = tensors[f"{PREFIX}{path}.lora_A{e}.weight"].astype(float)
            y += weights[e] * 32 / rank * tensors[f"{PREFIX}{path}.lora_B{e}.weight"].astype(float) @ (a @ x)
        return y

    return save(folder, tensors, {"r": rank, "lora_alpha": 32, "lora_nums": count}), loop


def smora(folder, rank=8, chosen=4, part=2, uniform=False, bias=0.0, **config):
    tensors = {}
    for n, path in enumerate(PATHS):
        tensors[f"{PREFIX}{path}.lora_A.weight"] = numbers(n, rank, INS)
        tensors[f"{PREFIX}{path}.lora_B.weight"] = numbers(10 + n, OUTS, rank)
        tensors[f"{PREFIX}{path}.lora_router.weight"] = numbers(20 + n, rank // part, INS) * (not uniform)
        tensors[f"{PREFIX}{path}.lora_biases"] = 0.1 * numbers(30 + n, rank) * (not uniform) + np.float32(
            bias
        )

    def loop(path, x):
        a, b, w = (
            tensors[f"{PREFIX}{path}.{p}.weight"].astype(float) for p in ("lora_A", "lora_B", "lora_router")
        )
        g = np.repeat(1 / (1 + np.exp(-(w @ x))), part) + tensors[f"{PREFIX}{path}.lora_biases"]
        best = np.argsort(-g, kind="stable")[:chosen]
        y = np.zeros(OUTS)
        for i in best:
            y += 16 / chosen * g[i] / g[best].sum() * chosen * b[:, i] * (a[i] @ x)
        return y

    return save(folder, tensors, {"r": rank, "lora_alpha": 16, "activate_r": chosen, **config}), loop


def lora_mixer(folder, ranks=(2, 3, 4, 1)):
    tensors = {}
    for n, path in enumerate(PATHS):
        tensors[f"{PREFIX}{path}.router.weight"] = numbers(n, len(ranks), INS)
        for e, rank in enumerate(ranks):
            tensors[f"{PREFIX}{path}.lora_A.expert{e}.weight"] = numbers(100 + 10 * n + e, rank, INS)
            tensors[f"{PREFIX}{path}.lora_B.expert{e}.weight"] = numbers(200 + 10 * n + e, OUTS, rank)

    def loop(path, x):
        logits = tensors[f"{PREFIX}{path}.router.weight"].astype(float) @ x
        best = np.argsort(-logits)[:3]
        y = np.zeros(OUTS)
        for weight, e in zip(softmax(logits[best]), best, strict=True):
            a = tensors[f"{PREFIX}{path}.lora_A.expert{e}.weight"].astype(float)
            b = tensors[f"{PREFIX}{path}.lora_B.expert{e}.weight"].astype(float)
            y += weight * 8 / ranks[e] * b @ (a @ x)
        return y

    return save(folder, tensors, {"lora_alpha": 8}), loop


def flylora(folder, rank=8, chosen=3, seed=0, b_seed=50, bias_seed=30, **config):
    tensors = {}
    for n, path in enumerate(PATHS):
        tensors[f"{PREFIX}{path}.lora_A.weight"] = numbers(seed + n, rank, INS)
        tensors[f"{PREFIX}{path}.lora_B.weight"] = numbers(b_seed + n, OUTS, rank)
        tensors[f"{PREFIX}{path}.lora_topk_bias"] = 0.1 * numbers(bias_seed + n, rank)

    def loop(path, x):
        a, b = (tensors[f"{PREFIX}{path}.{p}.weight"].astype(float) for p in ("lora_A", "lora_B"))
        h = a @ x
        best = np.argsort(-(h + tensors[f"{PREFIX}{path}.lora_topk_bias"]))[:chosen]
        return 16 / rank * b[:, best] @ h[best]

    said = {"r": rank, "lora_alpha": 16, "top_k": chosen, "bias_u": 1e-3, **config}
    return save(folder, tensors, said), loop


HIDDEN, INNER = 4, 6
PROMPT = numbers(77, 5, HIDDEN).astype(float)


def wavllm(file, rank=3):
    """A checkpoint of fairseq: factors transposed, one adapter of the prompt for all modules."""
    tensors = {
        "model.scale_fc_1.weight": numbers(1, INNER, HIDDEN),
        "model.scale_fc_1.bias": numbers(2, INNER),
        "model.scale_fc_2.weight": numbers(3, OUTS, INNER),
        "model.scale_fc_2.bias": numbers(4, OUTS),
        "model.scale_weight_attention.weight": numbers(5, 1, OUTS),
        "model.norm.weight": numbers(6, 4),
    }
    for n in range(2):
        for m, name in enumerate(("wq", "wv")):
            path = f"model.layers.{n}.attention.{name}"
            tensors[f"{path}_lora_A"] = numbers(50 + 4 * n + m, INS, rank)
            tensors[f"{path}_lora_B"] = numbers(80 + 4 * n + m, rank, OUTS)

    def gate(prompt):
        said = {k.removeprefix("model."): v.astype(float) for k, v in tensors.items()}
        total, heats = [], []
        for h in prompt:
            inner = said["scale_fc_1.weight"] @ h + said["scale_fc_1.bias"]
            inner = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in inner])
            total.append(said["scale_fc_2.weight"] @ inner + said["scale_fc_2.bias"])
            heats.append(float(said["scale_weight_attention.weight"][0] @ total[-1]))
        return np.clip(softmax(np.array(heats)) @ np.array(total), 0, 3)

    def loop(path, x, prompt=PROMPT):
        a, b = (tensors[f"{path}_lora_{p}"].astype(float) for p in "AB")
        return gate(prompt) * (x @ a @ b)

    with Writer(file, {k: ("F32", v.shape) for k, v in tensors.items()}, {}) as writer:
        for key, array in tensors.items():
            writer.write(key, array)
    return file, loop
