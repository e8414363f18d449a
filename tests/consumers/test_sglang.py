"""SGLang's own reader, out of its wheel: what it stacks, and the one scale that it uses."""

from types import SimpleNamespace

import numpy as np
import pytest

import loramerge as lm
from loramerge.consumers import CONSUMERS
from loramerge.consumers.check import facts_of
from tests.consumers.hostile import HOSTILE
from tests.consumers.inputs import NAMES, SCALINGS, embedding, write
from tests.consumers.own_code import archive, module, only, source
from tests.helpers.files import read
from tests.helpers.tiny_models import torch

pytestmark = [pytest.mark.conformance, pytest.mark.filterwarnings("ignore")]
SGLANG = CONSUMERS["sglang"]
LORA = "sglang/srt/lora"
WIDTHS = {"qkv_proj": 3, "gate_up_proj": 2}  # how many are stacked


@pytest.fixture
def sglang(monkeypatch):
    """(LoRAConfig, LoRAAdapter, get_normalized_target_modules, get_target_module_name) of the wheel."""
    wheel = archive(f"sglang-{SGLANG.version}-*.whl")
    for name, part in {
        "configs.load_config": "LoadConfig",
        "lora.backend.base_backend": "BaseLoRABackend",
        "model_loader.loader": "DefaultModelLoader",
        "utils.hf_transformers_utils": "AutoConfig",
    }.items():
        module(monkeypatch, f"sglang.srt.{name}", **{part: object})
    layers = "import re\n" + only(source(wheel, "sglang/srt/layers/utils/common.py"), "get_layer_id")
    module(monkeypatch, "sglang.srt.layers.utils", "from __future__ import annotations\n" + layers)
    names = only(source(wheel, f"{LORA}/utils.py"), "get_normalized_target_modules", "get_target_module_name")
    head = "from __future__ import annotations\nfrom typing import *\n"
    utils = module(monkeypatch, "sglang.srt.lora.utils", head + names)
    config = module(monkeypatch, "sglang.srt.lora.lora_config", source(wheel, f"{LORA}/lora_config.py"))
    adapter = module(monkeypatch, "sglang.srt.lora.lora", source(wheel, f"{LORA}/lora.py"))
    return SimpleNamespace(
        LoRAConfig=config.LoRAConfig,
        LoRAAdapter=adapter.LoRAAdapter,
        normalized=utils.get_normalized_target_modules,
        named=utils.get_target_module_name,
    )


def load(sglang, place):
    """(config, adapter), as its manager and its memory pool go about it."""
    config = sglang.LoRAConfig(str(place))
    if config.use_dora or config.lora_added_tokens_size:
        raise ValueError("its manager refuses it")
    adapter = sglang.LoRAAdapter("a", config, SimpleNamespace(num_hidden_layers=2), None, None)
    tensors = read(place / "adapter_model.safetensors")
    adapter.initialize_weights_from_tensors({name: torch.tensor(value) for name, value in tensors.items()})
    targets = sglang.normalized(config.target_modules)
    for layer in adapter.layers:
        taken = set()
        for name, weights in layer.weights.items():
            target = sglang.named(name, {"qkv_proj", "down_proj"} if "all" in targets else targets)
            width = WIDTHS.get(target, 1) * config.r if "lora_A" in name else config.r
            found = weights.shape[0] if "lora_A" in name else weights.shape[-1]
            if weights.dim() != 2 or found != width or (target, "lora_A" in name) in taken:
                raise AssertionError("LoRA buffer shape does not match weight shape")  # of its memory pool
            taken.add((target, "lora_A" in name))
    return config, adapter


@pytest.mark.parametrize("more", [None, embedding(5, 4)], ids=["linear", "embedding"])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_it_loads_a_merge_as_it_is_meant(sglang, scaling, more, tmp_path):
    listed = {"target_modules": [*NAMES, "embed_tokens"]} if more else {}
    places = [write(tmp_path / n, i, SCALINGS[scaling], more, **listed) for i, n in enumerate("ab")]
    merge = lm.combine(places, weights=[0.7, -0.3], consumer="sglang", out=tmp_path / "m")
    config, adapter = load(sglang, tmp_path / "m")
    stacked = {k: v for layer in adapter.layers for k, v in layer.weights.items()} | adapter.embedding_layers
    for target in merge.adapter:
        up, down = _of(target.path, stacked, config.r)
        found = adapter.scaling * up @ down
        assert np.allclose(found, merge.adapter[target].dense(), rtol=1e-5, atol=1e-6), target
    assert (len(adapter.embedding_layers) == 2) == bool(more)


def _of(path, stacked, r):
    """up and down of a module, out of what it is stacked in."""
    parent, _, last = path.rpartition(".")
    stack = ["q_proj", "k_proj", "v_proj"]
    ends = [("lora_B.weight", "lora_A.weight"), ("lora_embedding_B", "lora_embedding_A")][
        last == "embed_tokens"
    ]
    name = f"{parent}.qkv_proj" if last in stack else path
    up, down = (stacked[f"base_model.model.{name}.{end}"].double().numpy() for end in ends)
    if last not in stack:
        return up, down
    place, rows = stack.index(last), [0, 8, 12, 16]
    return up[rows[place] : rows[place + 1]], down[place * r : (place + 1) * r]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_its_scaling_rule_is_the_one_that_we_hold_it_to(sglang, scaling, tmp_path):
    facts = facts_of(write(tmp_path / "a", 0, SCALINGS[scaling]))
    config = sglang.LoRAConfig(str(tmp_path / "a"))
    assert all(SGLANG.scale(facts.config, m) == config.lora_alpha / config.r for m in facts.modules)


@pytest.mark.parametrize("name", [name for name in HOSTILE if "mlx" not in name])
def test_it_refuses_what_we_say_it_refuses_and_nothing_else(sglang, name, tmp_path):
    place = HOSTILE[name](tmp_path / "a")
    if any(finding.effect == "rejects" for finding in lm.check(place, "sglang")):
        with pytest.raises((ValueError, KeyError, AssertionError, OSError, RuntimeError)):
            load(sglang, place)
    else:
        load(sglang, place)


def test_it_passes_over_what_we_say_it_ignores(sglang, tmp_path):
    for name, count in {"gpt2": 0, "embedding not listed": 16, "a classifier": 16}.items():
        place = HOSTILE[name](tmp_path / name.replace(" ", "-"))
        assert {finding.effect for finding in lm.check(place, "sglang")} == {"ignores"}
        _, adapter = load(sglang, place)
        kept = sum(len(layer.weights) for layer in adapter.layers) + len(adapter.embedding_layers)
        assert kept == (count and 8)  # q, k and v are stacked: two pairs in each of two layers
