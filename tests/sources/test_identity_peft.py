"""Two adapters of one model, the second under other names: their merge is both of them, active in PEFT."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import loramerge as lm
from tests.helpers import tiny_families as tiny
from tests.helpers.tiny_models import QUIET, distance, load_adapters, save_adapter

pytestmark = QUIET
PREFIX = "base_model.model."
FUSED = {
    "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    "target_modules": ["q_proj", "o_proj"],
}
DEEP = {**FUSED, "target_modules": ["q_a_proj", "kv_b_proj", "o_proj"]}
VLM = {"target_modules": ["q_proj", "down_proj", "qkv"]}


def pairs(state):
    """Module path -> (A, B) of a state dict."""
    ends = ".lora_A.weight", ".lora_B.weight"
    stems = {key.removesuffix(ends[0]) for key in state if key.endswith(ends[0])}
    return {stem.removeprefix(PREFIX): [state[stem + end] for end in ends] for stem in stems}


def cut(name, *parts):
    """A fused projection as parts with these numbers of rows."""

    def respell(path, a, b):
        if not path.endswith(name):
            return {path: (a, b)}
        ends = np.cumsum([0, *(size for _, size in parts)])
        return {
            path.removesuffix(name) + part: (a, b[start:stop])
            for (part, _), start, stop in zip(parts, ends[:-1], ends[1:], strict=True)
        }

    return respell


def renamed(*names):
    def respell(path, a, b):
        for old, new in names:
            path = path.replace(old, new)
        return {path: (a, b)}

    return respell


def experts(names, home=("", ""), turned=False, rows=None, rank=2):
    """Fused experts one by one. `names`: of gate, up, down; or of both together and down."""

    def respell(path, a, b):
        if not path.removesuffix(".base_layer").endswith("experts"):
            return {path.replace(*home): (a, b)}
        inner = path.endswith(".base_layer")
        path, count, found = path.removesuffix(".base_layer").replace(*home), len(a) // rank, {}
        for e in range(count):
            down, up = a[e * rank : (e + 1) * rank], b[:, e::count]
            if turned:
                down, up = up.T, down.T
            if not inner or len(names) == 2:
                found[named(path, names[0 if inner else -1], e)] = down, up
                continue
            half = len(up) // 2
            spans = rows or (slice(half), slice(half, None))
            found |= {f"{path}.{e}.{n}": (down, up[s]) for n, s in zip(names, spans, strict=False)}
        return found

    return respell


def named(path, name, e):
    return f"{path}.{name}.{e}" if name.endswith("s") else f"{path}.{e}.{name}"


def stacked(path, a, b):
    """Experts as an exporter stacks them, in three dimensions."""
    if not path.removesuffix(".base_layer").endswith("experts"):
        return {path: (a, b)}
    name = "gate_up_proj" if path.endswith(".base_layer") else "down_proj"
    count = len(a) // 2
    up = b.reshape(len(b), 2, count).transpose(2, 0, 1)
    return {f"{path.removesuffix('.base_layer')}.{name}": (a.reshape(count, 2, -1), up)}


def crossed(path, a, b):
    """Fused experts with rows and columns exchanged, as transformers 4 and older PEFT have them."""
    if not path.removesuffix(".base_layer").endswith("experts"):
        return {path: (a, b)}
    count = len(a) // 2
    down = np.concatenate([b[:, e::count].T for e in range(count)])
    up = np.stack([a[e * 2 : e * 2 + 2].T for e in range(count)], -1).reshape(a.shape[1], -1)
    return {path: (down, up)}


def both(path, a, b):
    """Every projection of Phi-3 in parts."""
    heads = cut("qkv_proj", ("q_proj", 32), ("k_proj", 16), ("v_proj", 16))(path, a, b)
    gated = cut("gate_up_proj", ("gate_proj", 48), ("up_proj", 48))
    return {name: pair for path, own in heads.items() for name, pair in gated(path, *own).items()}


def seen(stem):
    return renamed(("model.language_model.", stem), ("model.visual.", "visual."))


OLD = ("w1", "w3", "w2")
NEW = ("gate_proj", "up_proj", "down_proj")
TURNS = (slice(None, None, 2), slice(1, None, 2))
VIT = renamed(
    ("vit.layers.", "vit.encoder.layer."),
    *((f"attention.{x[0]}_proj", f"attention.attention.{x}") for x in ("query", "key", "value")),
    ("attention.o_proj", "attention.output.dense"), ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)  # fmt: skip
CASES = {  # name -> the model, what is adapted, and how the second adapter calls it
    "Phi-3, split": (tiny.phi3, {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]}, both),
    "GLM, split": (
        tiny.glm, {"target_modules": ["q_proj", "gate_up_proj"]},
        cut("gate_up_proj", ("gate_proj", 48), ("up_proj", 48)),
    ),
    "Qwen3-MoE of transformers 4": (tiny.qwen3_moe, FUSED, experts(NEW)),
    "Qwen3-MoE, stacked": (tiny.qwen3_moe, FUSED, stacked),
    "Qwen3-MoE, crossed": (tiny.qwen3_moe, FUSED, crossed),
    "Mixtral of transformers 4": (
        tiny.mixtral, {**FUSED, "target_parameters": [*FUSED["target_parameters"], "gate.weight"]},
        experts(OLD, ("mlp.", "block_sparse_moe.")),
    ),
    "gpt-oss as lists": (tiny.gpt_oss, FUSED, experts(("gate_up_projs", "down_projs"))),
    "gpt-oss, split": (tiny.gpt_oss, FUSED, experts(NEW, rows=TURNS)),
    "DeepSeek-V3 of transformers 4": (tiny.deepseek, DEEP, experts(NEW)),
    "Llama 4, one by one": (tiny.llama4, FUSED, experts(NEW, turned=True)),
    "Qwen2.5-VL before 4.52": (tiny.qwen_vl, VLM, seen("model.")),
    "Qwen2.5-VL of vLLM": (tiny.qwen_vl, VLM, seen("language_model.model.")),
    "the model alone": (tiny.glm, {"target_modules": ["q_proj"]}, renamed(("model.layers", "layers"))),
    "ViT before 5": (tiny.vit, {"target_modules": ["q_proj", "v_proj", "o_proj", "fc1", "fc2"]}, VIT),
}  # fmt: skip


def respelt(folder, place, respell):
    """The adapter in a folder under other names, exactly."""
    shutil.copytree(folder, place)
    found = {}
    for path, (a, b) in pairs(load_file(folder / "adapter_model.safetensors")).items():
        for name, (down, up) in respell(path, a, b).items():
            found[f"{PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(down)
            found[f"{PREFIX}{name}.lora_B.weight"] = np.ascontiguousarray(up)
    save_file(found, place / "adapter_model.safetensors")
    path = place / "adapter_config.json"
    config = json.loads(path.read_text())
    kept = any(name.endswith((".experts.lora_A.weight", ".base_layer.lora_A.weight")) for name in found)
    config["target_parameters"] = config["target_parameters"] if kept else None
    path.write_text(json.dumps(config))
    return place


@pytest.mark.parametrize(("make", "config", "respell"), CASES.values(), ids=CASES)
def test_the_merge_of_two_spellings_is_both_adapters(tmp_path, make, config, respell):
    plain = [
        save_adapter(tmp_path / str(seed), make, seed, {"r": 2, "lora_alpha": 3, **config}) for seed in (1, 2)
    ]
    wanted = tiny.answers(load_adapters(make, plain))
    other = respelt(plain[1], tmp_path / "other", respell)
    spelt = [set(load_file(place / "adapter_model.safetensors")) for place in (plain[1], other)]
    assert spelt[0] != spelt[1] or respell is crossed
    for sources in ([plain[0], other], [other, plain[0]]):
        out = tmp_path / f"merged-{len(list(tmp_path.iterdir()))}"
        lm.combine(sources, "linear", out=out, dtype="float32")
        assert distance(tiny.answers(load_adapters(make, [out])), wanted) < 2e-5
    assert lm.diff(plain[1], other).largest < 1e-6
