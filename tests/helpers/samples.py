"""A sample of every format: how its modules are spelled, and adapters of every kind of layer it has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from loramerge import Adapter, LowRank, Target
from loramerge.adapters.adapter import Held, Slot
from loramerge.adapters.target import Layout

IN, OUT = 32, 96  # a fused projection of Flux has three times as many outputs as inputs
Layers = Mapping[Target, tuple[int, int]]


@dataclass(frozen=True)
class Spelling:
    """How a format spells a module.

    Args:
        prefix: what stands before its name.   ends: the ends of the keys of down and up.
        names: of two modules that its tools really adapt.   alpha: the end of an alpha's key; "" for none.
        transposed: factors are stored so.   asks: a bare file does not say its scale.
    """

    prefix: str
    ends: tuple[str, str]
    names: tuple[str, str]
    alpha: str = ".alpha"
    transposed: bool = False
    asks: bool = False

    @property
    def module(self) -> str:
        """What the keys of its first module begin with."""
        return re.split(r"\.lora_|_lora_|\.w_lora|\.down|:down", self.keys(self.names[0])[0])[0]

    def keys(self, name: str) -> tuple[str, str]:
        """The keys of the down and up factors of a module of this name."""
        down, up = (
            end.replace("*", name) if "*" in end else f"{self.prefix}{name}{end}" for end in self.ends
        )
        return down, up

    def pair(self, name: str, rank: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
        """Random factors of a module."""
        rng = np.random.default_rng([seed, len(name)])
        down, up = rng.standard_normal((rank, IN)), rng.standard_normal((OUT, rank))
        stored = (down.T, up.T) if self.transposed else (down, up)
        return dict(zip(self.keys(name), (np.ascontiguousarray(f, np.float32) for f in stored), strict=True))

    def file(self, names: Iterable[str] = (), **options: int) -> dict[str, np.ndarray]:
        """Tensors of its two modules, and of others."""
        return {k: v for name in (*self.names, *names) for k, v in self.pair(name, **options).items()}


AB, OLD = (".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")
BLOCK = "1.transformer_blocks.0.attn1.to_"
SPELLINGS = {
    "kohya": Spelling("lora_unet_", OLD,
        ("mid_block_attentions_0_proj_in", "mid_block_attentions_0_proj_out")),
    "xlabs": Spelling("double_blocks.",
        (".processor.qkv_lora1.down.weight", ".processor.qkv_lora1.up.weight"), ("0", "18"), alpha=""),
    "comfy": Spelling("diffusion_model.", AB, ("blocks.0.self_attn.q", "blocks.0.self_attn.k")),
    "bfl": Spelling("", AB, ("double_blocks.0.img_attn.qkv", "double_blocks.18.txt_attn.qkv")),
    "onetrainer": Spelling("unet.", AB, (f"input_blocks.1.{BLOCK}q", f"input_blocks.1.{BLOCK}k")),
    "diffusers": Spelling("unet.", AB, ("mid_block.attentions.0.proj_in", "mid_block.attentions.0.proj_out")),
    "mlx": Spelling("", (".lora_a", ".lora_b"),
        ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"), "", True, True),
    "cloneofsimo": Spelling("unet:", (":down", ":up"), ("0", "1"), alpha=""),
    "sora": Spelling("", (".lora.lora_A", ".lora.lora_B"), ("layer.0.query", "layer.1.query"), "", asks=True),
    "wavllm": Spelling("layers.", (".attention.wq_lora_A", ".attention.wq_lora_B"),
        ("0", "1"), "", True, True),
    "omni": Spelling("model.layers.", (".self_attn.lora_down_Q.weight", ".self_attn.lora_up_Q.weight"),
        ("0", "1"), "", asks=True),
    "clip-lora": Spelling("", (".q_proj.w_lora_A", ".q_proj.w_lora_B"),
        ("layer_0", "layer_1"), "", asks=True),
    "loralib": Spelling("", (".lora_A", ".lora_B"), ("h.0.attn.c_attn", "h.1.attn.c_attn"), "", asks=True),
    "sam": Spelling("", ("w_a_*", "w_b_*"), ("000", "001"), alpha=""),
    "bare": Spelling("", AB, ("layers.0.attention.qkv", "layers.29.attention.qkv")),
    "peft": Spelling("base_model.model.", AB,
        ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"), asks=True),
}  # fmt: skip


def unet(path: str, *kernel: int) -> Target:
    kind = "conv" if kernel else "linear"
    return Target(path, component="unet", kind=kind, layout=Layout(kernel=kernel))


CLIP = "text_model.encoder.layers.1.self_attn.q_proj"
STABLE: dict[str, Layers] = {  # layers of Stable Diffusion 1
    "linear": {unet("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"): (8, 6)},
    "conv": {
        unet("up_blocks.3.resnets.2.conv1", 3, 3): (6, 36),
        unet("mid_block.attentions.0.proj_in", 1, 1): (6, 4),
    },
    "text encoder": {Target(CLIP, component="text_encoder"): (8, 6)},
}
LANGUAGE: dict[str, Layers] = {
    "linear": {Target(f"model.layers.{n}.self_attn.{x}_proj"): (8, 6) for n in (0, 1) for x in "qv"},
    "embedding": {Target("model.embed_tokens", kind="embedding"): (6, 12)},
}


def experts(
    path: str, name: str = "weight", shape: tuple[int, int] = (8, 6), component: str = "model"
) -> Layers:
    layout = Layout(blocks=3)
    return {Target(path, name, component, n, "expert", layout): shape for n in range(3)}


def grouped(path: str, component: str = "model") -> Layers:
    layout = Layout(kernel=(3,), blocks=2)
    return {Target(path, component=component, index=n, kind="conv", layout=layout): (4, 9) for n in range(2)}


EXPERTS = "model.layers.0.mlp.experts"
LAYERS: dict[str, dict[str, Layers]] = {  # of every format that is written: kind of layer -> modules
    "kohya": STABLE,
    "comfy": STABLE,
    "diffusers": STABLE,
    "bare": {
        "linear": {
            Target("transformer_blocks.0.img_mod.1", component="transformer"): (48, 8),
            Target("transformer_blocks.59.txt_mlp.net.2", component="transformer"): (8, 32),
        }
    },
    "cloneofsimo": {
        "linear": {unet("numbered.0"): (8, 6)},
        "conv": {unet("numbered.0"): (8, 6), unet("numbered.1", 3, 3): (6, 36)},
        "text encoder": {Target("numbered.0", component="text_encoder"): (8, 6)},
    },
    "sam": {"linear": {Target("numbered.0", component="sam"): (8, 6)}},
    "mlx": {**LANGUAGE, "expert": experts("model.layers.0.mlp.switch_mlp.up_proj")},
    "peft": {
        **LANGUAGE,
        "conv": {Target("features.conv", kind="conv", layout=Layout(kernel=(3, 3))): (6, 36)},
        "grouped conv": grouped("features.grouped"),
        "expert": {**experts(EXPERTS, "gate_up_proj"), **experts(EXPERTS, "down_proj", (6, 4))},
    },
}
OTHERS = {  # a layer of every kind, for the formats that have no name for it
    "conv": lambda part: {Target("shared.conv", "weight", part, -1, "conv", Layout(kernel=(3,))): (6, 12)},
    "embedding": lambda part: {Target("shared.embed", component=part, kind="embedding"): (6, 12)},
    "grouped conv": lambda part: grouped("shared.grouped", part),
    "expert": lambda part: experts("shared.experts", component=part),
}


def adapter(layers: Layers, ranks: Iterable[int] = (2,), dtype: str = "f4", scale: float = 1.5) -> Adapter:
    """Random updates of these modules; the ranks go round, and what is stored in one tensor has one."""
    rng, sizes, slots, places = np.random.default_rng(0), list(ranks), {}, {}
    for target, (outs, ins) in layers.items():
        rank = places.setdefault(target.place, sizes[len(places) % len(sizes)])
        up, down = rng.standard_normal((outs, rank)), rng.standard_normal((rank, ins))
        slots[target] = Slot(Held(up.astype(dtype)), Held(down.astype(dtype)), scale)
    return Adapter("sample", slots)


def dense(found: Mapping[Target, LowRank]) -> dict[str, np.ndarray]:
    """Module -> ΔW."""
    return {str(target): update.dense() for target, update in found.items()}
