"""Folders that some consumer refuses, scales wrongly or reads in part."""

from __future__ import annotations

import json

import numpy as np

from tests.consumers.inputs import BASE, LAYERS, NAMES, SCALINGS, convolution, embedding, key, pairs, write
from tests.helpers.files import bare, folder

HEAD = {"base_model.model.score.weight": np.ones((2, 6), np.float32)}
LM_HEAD = {"base_model.model.lm_head.weight": np.ones((2, 6), np.float32)}
BIAS = {key(path, "lora_B.bias"): np.ones(outs, np.float32) for path, (outs, _) in LAYERS.items()}
MAGNITUDE = {
    key(path, "lora_magnitude_vector"): np.ones(outs, np.float32) for path, (outs, _) in LAYERS.items()
}


def _part(place, *names):
    """An adapter of some of the modules only."""
    kept = {k: v for k, v in pairs(0, SCALINGS["plain"]).items() if any(name in k for name in names)}
    said = {"peft_type": "LORA", "target_modules": list(names), **SCALINGS["plain"]}
    said["base_model_name_or_path"] = BASE
    return folder(place, kept, config=said)


def _without(place, *fields):
    """One whose config lacks these."""
    write(place)
    path = place / "adapter_config.json"
    said = {k: v for k, v in json.loads(path.read_text()).items() if k not in fields}
    path.write_text(json.dumps(said))
    return place


def _renamed(place, change):
    values = {change(name): value for name, value in pairs(0, SCALINGS["plain"]).items()}
    said = {"peft_type": "LORA", "target_modules": NAMES, **SCALINGS["plain"]}
    return folder(place, values, config=said | {"base_model_name_or_path": BASE})


def _tokens(place):
    write(place)
    (place / "added_tokens.json").write_text('{"<new>": 12}')
    return place


def _gpt2(place):
    values = {k.replace("model.layers", "transformer.h"): v for k, v in pairs(0, SCALINGS["plain"]).items()}
    return folder(place, values, config={"peft_type": "LORA", "target_modules": NAMES, **SCALINGS["plain"]})


def _adalora(place):
    values = {}
    for path, (outs, ins) in LAYERS.items():
        shapes = {"lora_A": (4, ins), "lora_B": (outs, 4), "lora_E": (4, 1)}
        values |= {key(path, end): np.ones(shape, np.float32) for end, shape in shapes.items()}
    said = {"peft_type": "ADALORA", "r": 8, "init_r": 4, "lora_alpha": 8, "target_modules": NAMES}
    return folder(place, values, config=said | {"rank_pattern": None})


def _experts(place):
    home = "model.layers.0.mlp.experts"
    values = {
        key(home, "lora_A.weight"): np.ones((6, 5), np.float32),
        key(home, "lora_B.weight"): np.ones((7, 6), np.float32),
        key(f"{home}.base_layer", "lora_A.weight"): np.ones((6, 7), np.float32),
        key(f"{home}.base_layer", "lora_B.weight"): np.ones((10, 6), np.float32),
    }
    both = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": [], **both}
    return folder(place, values, config=said | {"base_model_name_or_path": "Qwen/Qwen3-30B-A3B"})


def _config(**changes):
    return lambda place: write(place, 0, None, None, **changes)


def _with(more, **changes):
    return lambda place: write(place, 0, None, more, **changes)


HOSTILE = {
    "plain": write,
    "rslora": lambda place: write(place, 0, SCALINGS["rslora"]),
    "mixed ranks": lambda place: write(place, 0, SCALINGS["mixed ranks"]),
    "patterns": lambda place: write(place, 0, SCALINGS["patterns"]),
    "rank 24": lambda place: write(place, 0, {"r": 24, "lora_alpha": 24}),
    "rank 24 in one": lambda place: write(place, 0, SCALINGS["plain"] | {"rank_pattern": {"k_proj": 24}}),
    "dora": _with(MAGNITUDE, use_dora=True),
    "lora_bias": _with(BIAS, lora_bias=True),
    "bias without tensors": _config(bias="lora_only"),
    "pissa": _config(init_lora_weights="pissa_niter_4"),
    "gaussian": _config(init_lora_weights="gaussian"),
    "alora": _config(alora_invocation_tokens=[1, 2]),
    "layer_replication": _config(layer_replication=[[0, 1], [0, 1]]),
    "qalora": _config(use_qalora=True),
    "bdlora": _config(use_bdlora={"target_modules_bd_a": ["q_proj"]}),
    "target_modules as a pattern": _config(target_modules=r".*(proj)"),
    "all-linear": _config(target_modules="all-linear"),
    "without target_modules": lambda place: _without(place, "target_modules"),
    "a classifier": _with(HEAD, modules_to_save=["score"], task_type="SEQ_CLS"),
    "a head": _with(LM_HEAD, modules_to_save=["lm_head"]),
    "a head not listed": _with(LM_HEAD),
    "an adapter's name": lambda place: _renamed(place, lambda k: k.replace(".weight", ".default.weight")),
    "without a prefix": lambda place: _renamed(place, lambda k: k.removeprefix("base_model.model.")),
    "q alone": lambda place: _part(place, "q_proj"),
    "k and v": lambda place: _part(place, "k_proj", "v_proj"),
    "q and v": lambda place: _part(place, "q_proj", "v_proj"),
    "embedding": _with(embedding(1, 4), target_modules=[*NAMES, "embed_tokens"]),
    "embedding not listed": _with(embedding(1, 4)),
    "convolution": _with(convolution(1, 4), target_modules=[*NAMES, "conv"]),
    "convolution in a layer": _with(
        convolution(1, 4, "model.layers.0.conv"), target_modules=[*NAMES, "conv"]
    ),
    "added tokens": _tokens,
    "gpt2": _gpt2,
    "adalora": _adalora,
    "experts": _experts,
    "one file": lambda place: bare(place.with_suffix(".safetensors"), pairs(0, SCALINGS["plain"])),
}


def _oldest(place):
    """PEFT 0.2's fused layout."""
    path = "transformer.layers.0.query_key_value"
    values = {
        key(path, "lora_A.weight"): np.ones((4, 6), np.float32),
        key(path, "lora_B.weight"): np.ones((12, 2, 1), np.float32),
    }
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["query_key_value"]}
    return folder(place, values, config=said | {"enable_lora": [True, False, True]})


def _unknown(place):
    values = {"base_model.model.layers.0.gate": np.ones(3, np.float32)}
    return folder(place, values, config={"peft_type": "FINEGATES"})


def _up(place):
    values = {
        key("model.layers.0.mlp.up_proj", "lora_A.weight"): np.ones((4, 6), np.float32),
        key("model.layers.0.mlp.up_proj", "lora_B.weight"): np.ones((10, 4), np.float32),
    }
    said = {"peft_type": "LORA", "target_modules": ["up_proj"], **SCALINGS["plain"]}
    said["base_model_name_or_path"] = BASE
    return folder(place, values, config=said)


def settings(**components):
    """A header that says these settings of each component, beside rank 2 and alpha 2."""
    said = {}
    for component, own in components.items():
        whole = {"r": 2, "lora_alpha": 2, "target_modules": ["to_q", "proj_in"]} | own
        prefix = f"{component}." if component else ""
        said |= {f"{prefix}{key}": value for key, value in whole.items() if value is not None}
    return {"lora_adapter_metadata": json.dumps(said)}


def _diffusers(
    place, more=None, metadata=None, path="unet.down_blocks.0.attentions.0.proj_in", ends=("lora_A", "lora_B")
):
    values = {
        f"{path}.{ends[0]}.weight": np.ones((2, 6), np.float32),
        f"{path}.{ends[1]}.weight": np.ones((6, 2), np.float32),
        **(more or {}),
    }
    return bare(place.with_suffix(".safetensors"), values, metadata)


def _mlx(place, rank=4, more=None, name="adapters.safetensors", **config):
    place.mkdir()
    values = {
        "model.layers.0.q.lora_a": np.ones((6, rank), np.float32),
        "model.layers.0.q.lora_b": np.ones((rank, 8), np.float32),
        **(more or {}),
    }
    bare(place / name, values)
    said = {"num_layers": 1, "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.0}} | config
    said = {key: value for key, value in said.items() if value is not None}
    (place / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "lora", **said}))
    return place


MORE = {"bundle_emb.style.clip_l": np.ones((2, 6), np.float32)}
FLUX = "transformer.transformer_blocks.0.attn.to_q"
ALPHA = {"unet.down_blocks.0.attentions.0.proj_in.alpha": np.float32(2)}
DORA = {
    "lora_unet_a.lora_down.weight": np.ones((2, 6), np.float32),
    "lora_unet_a.lora_up.weight": np.ones((8, 2), np.float32),
    "lora_unet_a.dora_scale": np.ones((8, 1), np.float32),
}
COMFY = {
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_A.weight": np.ones(
        (2, 320), np.float32
    ),
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_B.weight": np.ones(
        (320, 2), np.float32
    ),
}


def in_kohya(form):
    """One module of the UNet of Stable Diffusion 1 in each of the forms that kohya's names have."""
    linear = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    conv = "lora_unet_down_blocks_0_resnets_0_conv1"
    shapes = {
        "hada": {f"hada_w{i}_{x}": s for i in (1, 2) for x, s in {"a": (320, 2), "b": (2, 320)}.items()},
        "lokr": {"lokr_w1": (4, 4), "lokr_w2": (80, 80)},
        "mid": {
            "lora_down.weight": (2, 320, 1, 1),
            "lora_mid.weight": (2, 2, 3, 3),
            "lora_up.weight": (320, 2, 1, 1),
        },
        "diff": {"diff": (320, 320)},
    }.get(form, {"lora_down.weight": (2, 320), "lora_up.weight": (320, 2)})
    stem = conv if form == "mid" else linear
    values = {f"{stem}.{part}": np.ones(shape, np.float32) for part, shape in shapes.items()}
    return values if form == "diff" else values | {f"{stem}.alpha": np.float32(2)}


Q_BIAS = {key("model.layers.0.self_attn.q_proj", "base_layer.bias"): np.ones(8, np.float32)}
HOSTILE |= {
    "enable_lora": _oldest,
    "unknown type": _unknown,
    "up alone": _up,
    "a bias in a layer": _with(Q_BIAS, bias="all"),
    "without lora_alpha": lambda place: _without(place, "lora_alpha"),
    "sd15": _diffusers,
    "sd15 with attention": lambda place: _diffusers(place, path="unet.mid_block.attentions.0.attn1.to_q"),
    "sd15 of old": lambda place: _diffusers(place, path="unet.mid_block.attentions.0.attn1.processor.to_q"),
    "sd15 with two answers": lambda place: _diffusers(place, ALPHA, settings(unet={"lora_alpha": 2})),
    "sd15 with more": lambda place: _diffusers(place, MORE, settings(unet={})),
    "sd15 with alphas": lambda place: _diffusers(place, {key: np.float32(4) for key in ALPHA}),
    "sd15 with a config": lambda place: _diffusers(place, None, settings(unet={"lora_alpha": 4})),
    "sd15 without targets": lambda place: _diffusers(
        place, None, settings(unet={"lora_alpha": 4, "target_modules": None})
    ),
    "sd15 of other settings": lambda place: _diffusers(place, None, settings(**{"": {"lora_alpha": 4}})),
    "sd15 of another rank": lambda place: _diffusers(place, None, settings(unet={"r": 3})),
    "sd15 without a part": lambda place: _diffusers(
        place, path="mid_block.attentions.0.attn1.processor.to_q"
    ),
    "sd15 in the way of kohya": lambda place: _diffusers(place, ends=("lora_down", "lora_up")),
    "sd15 with a name": lambda place: _diffusers(place, ends=("lora_A.default", "lora_B.default")),
    "flux with alphas": lambda place: _diffusers(place, {f"{FLUX}.alpha": np.float32(4)}, path=FLUX),
    "flux with two answers": lambda place: _diffusers(
        place, {f"{FLUX}.alpha": np.float32(4)}, settings(transformer={"lora_alpha": 4}), path=FLUX
    ),
    "kohya with DoRA": lambda place: bare(place.with_suffix(".safetensors"), DORA),
    "kohya": lambda place: bare(place.with_suffix(".safetensors"), in_kohya("lora_down lora_up")),
    "kohya with LoHa": lambda place: bare(place.with_suffix(".safetensors"), in_kohya("hada")),
    "kohya with LoKr": lambda place: bare(place.with_suffix(".safetensors"), in_kohya("lokr")),
    "kohya with Tucker": lambda place: bare(place.with_suffix(".safetensors"), in_kohya("mid")),
    "kohya with a difference": lambda place: bare(place.with_suffix(".safetensors"), in_kohya("diff")),
    "comfy": lambda place: bare(place.with_suffix(".safetensors"), COMFY),
    "numbered": lambda place: bare(
        place.with_suffix(".safetensors"), {"w_a_000": np.ones((2, 6), np.float32)}
    ),
    "mlx": _mlx,
    "mlx of two ranks": lambda place: _mlx(place, rank=2),
    "mlx without a scale": lambda place: _mlx(
        place, num_layers=None, lora_parameters={"rank": 4, "dropout": 0.0}
    ),
    "mlx renamed": lambda place: _mlx(place, name="0000100_adapters.safetensors"),
    "mlx with more": lambda place: _mlx(place, more={"model.norm.weight": np.ones(6, np.float32)}),
}
