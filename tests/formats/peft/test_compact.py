"""PEFT as the oracle of the compact profile: it loads what we wrote at the strength we meant."""

import numpy as np
import pytest

import loramerge as lm
from tests.helpers.tiny_models import (
    QUIET,
    base,
    deltas,
    distance,
    gpt2,
    llama,
    load_adapters,
    logits,
    logits_by_hand,
    save_adapter,
    torch,
)

pytestmark = QUIET

LLAMA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
MIXED = LLAMA | {"rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 6}}
GPT2 = {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
RULES = [lm.Rule("layers?.0.*(q|v)_proj|h.0.attn", rank=1), lm.Rule("1.*(down|c)_proj", rank=5)]


@pytest.mark.parametrize(("make", "config"), [(llama, LLAMA), (llama, MIXED), (gpt2, GPT2)])
def test_peft_loads_the_merge_that_was_decided(make, config, tmp_path):
    sources = [save_adapter(tmp_path / n, make, i, config) for i, n in enumerate("ab")]
    merge = lm.combine(sources, "svd", rules=RULES, profile="compact", out=tmp_path / "m")
    assert len(set(merge.adapter.config["rank_pattern"].values())) > 1

    model = load_adapters(make, [tmp_path / "m"])
    found = deltas(model, "0")
    assert set(found) == {target.path for target in merge.adapter}
    for target in merge.adapter:
        assert np.allclose(found[target.path], merge.adapter[target].dense(), rtol=1e-5, atol=1e-6)
    assert distance(logits(model), logits_by_hand(load_adapters(make, [tmp_path / "m"]), [1.0])) < 1e-5


def test_a_lossless_merge_gives_the_logits_of_the_sum(tmp_path):
    sources = [save_adapter(tmp_path / n, llama, i, MIXED, torch.float64) for i, n in enumerate("ab")]
    lm.combine(sources, weights=[0.7, -0.3], profile="compact", dtype="float64", out=tmp_path / "m")
    found = logits(load_adapters(llama, [tmp_path / "m"], torch.float64))
    expected = logits_by_hand(load_adapters(llama, sources, torch.float64), [0.7, -0.3])
    assert distance(found, expected) < 1e-10
    assert distance(logits(base(llama, torch.float64)), expected) > 1e-3
