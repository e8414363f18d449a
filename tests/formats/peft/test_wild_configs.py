"""Configs and tensors that nobody would write on purpose: merged, or refused in a sentence."""

import json
import random

import numpy as np
import pytest

import loramerge
from loramerge.formats.extras import POLICIES
from tests.helpers.files import bare, key, tensors

VALUES = [None, True, False, 0, 1, -1, 1.5, "", "x", "q", [], ["q"], [1], [None], {}, {"q": 1},
          {"q": [True, False]}, {"q": ["a"]}, [[0, 1]], [True, False], "experts.down_proj",
          ["experts.down_proj"], ["layers.0.q.weight"], "pissa"]  # fmt: skip
FIELDS = ["target_parameters", "enable_lora", "layer_replication", "modules_to_save", "bias", "lora_bias",
          "trainable_token_indices", "rank_pattern", "alpha_pattern", "init_r", "lora_alpha", "r",
          "peft_type", "target_modules", "layers_to_transform", "exclude_modules", "id2label",
          "base_model_name_or_path", "fan_in_fan_out", "init_lora_weights", "auto_mapping"]  # fmt: skip
P = "base_model.model."
EXTRAS = {
    f"{P}score.weight": np.ones((2, 3)),
    f"{P}norm.weight": np.ones(3),
    f"{P}layers.0.q.lora_B.bias": np.ones(6),
    f"{P}layers.0.q.base_layer.bias": np.ones(6),
    f"{P}emb.token_adapter.trainable_tokens_delta": np.ones((2, 3)),
    f"{P}.weight": np.ones(1),
    ".bias": np.ones(1),
    "x": np.ones(2),
}


def source(draw, path, seed):
    values = tensors(seed)
    values |= {name: EXTRAS[name] for name in draw.sample(sorted(EXTRAS), draw.choice([0, 0, 1, 2]))}
    if draw.random() < 0.2:
        values |= {key("experts", "A"): np.ones((4, 3)), key("experts", "B"): np.ones((5, 4))}
    if draw.random() < 0.2:
        values |= {key("c", "A"): np.ones((2, 3, 3)), key("c", "B"): np.ones((4, draw.randint(1, 3), 1))}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    config |= {field: draw.choice(VALUES) for field in draw.sample(FIELDS, draw.choice([0, 0, 1, 2]))}
    path.mkdir()
    bare(path / "adapter_model.safetensors", values)
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("seed", range(20))
def test_anything_is_merged_or_refused(seed, tmp_path):
    draw, merged, refusals = random.Random(seed), 0, []
    for i in range(25):
        sources = [source(draw, tmp_path / f"{i}{name}", i) for name in "ab"]
        try:
            loramerge.combine(sources, extras=draw.choice(POLICIES), out=tmp_path / f"m{i}", threads=1)
            merged += 1
        except loramerge.LoramergeError as error:
            refusals.append(str(error))
    assert len(list(tmp_path.glob("m*"))) == merged > 0
    assert all(each.isprintable() and each.endswith(".") for each in refusals)
