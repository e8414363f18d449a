"""The ΔW that each consumer's own scaling rule gives is ours, for what `combine` writes."""

import numpy as np
import pytest

import loramerge as lm
from loramerge.consumers import CONSUMERS
from loramerge.consumers.check import facts_of
from tests.consumers.inputs import LAYERS, SCALINGS, convolution, embedding, key, meant, write
from tests.helpers.files import read

READERS = [name for name, consumer in CONSUMERS.items() if "peft" in consumer.dialects]
KINDS = {"linear": {}, "embedding": embedding(5, 4), "convolution": convolution(5, 4)}


def stored(place, module):
    """lora_B @ lora_A as it lies in the file, as (out, in)."""
    values = read(place / "adapter_model.safetensors")
    ends = ("lora_embedding_B", "lora_embedding_A")
    if key(module.place, ends[0]) not in values:
        ends = ("lora_B.weight", "lora_A.weight")
    up, down = (values[key(module.place, end)].astype(np.float64) for end in ends)
    return up.reshape(len(up), -1) @ down.reshape(len(down), -1)


def sources(tmp_path, scaling, kind):
    config = SCALINGS[scaling]
    return [write(tmp_path / n, i, config, KINDS[kind]) for i, n in enumerate("ab")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("profile", ["portable", "compact"])
def test_what_combine_writes_has_one_strength_everywhere(scaling, kind, profile, tmp_path):
    places, weights = sources(tmp_path, scaling, kind), [0.7, -0.3]
    lm.combine(places, weights=weights, profile=profile, out=tmp_path / "m", dtype="float64")
    facts = facts_of(tmp_path / "m")
    assert len(facts.modules) == len(LAYERS) + (kind != "linear")

    for module in facts.modules:
        strength = meant(SCALINGS[scaling], module.place)
        wanted = sum(w * strength * stored(p, module) for w, p in zip(weights, places, strict=True))
        written = stored(tmp_path / "m", module)
        for name in READERS:
            if profile == "portable" or CONSUMERS[name].patterns:
                found = CONSUMERS[name].scale(facts.config, module) * written
                assert np.allclose(found, wanted, rtol=1e-12, atol=1e-12), (name, module.place)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_peft_transformers_and_vllm_scale_every_input_as_it_is_meant(scaling, tmp_path):
    facts = facts_of(write(tmp_path / "a", 0, SCALINGS[scaling]))
    assert len(facts.modules) == len(LAYERS)
    for module in facts.modules:
        assert module.scale == pytest.approx(meant(SCALINGS[scaling], module.place), rel=1e-14)
        for name in ("peft", "transformers", "vllm"):
            assert CONSUMERS[name].scale(facts.config, module) == module.scale


@pytest.mark.parametrize(
    ("consumer", "scaling", "factors"),
    [
        ("sglang", "plain", {1}),
        ("sglang", "rslora", {0.5}),  # alpha/r instead of alpha/√r, r = 4
        ("sglang", "mixed ranks", {1, 2 / 4, 6 / 4}),
        ("llama.cpp", "plain", {1}),
        ("llama.cpp", "rslora", {0.5}),
        ("llama.cpp", "mixed ranks", {1}),  # it divides by the rank of the tensors
        ("llama.cpp", "patterns", {0.5, 0.5 * 4, 8 / 6 / np.sqrt(2)}),
        ("comfyui", "plain", {0.5}),  # it reads no config: scale 1 where 2 is meant
    ],
)
def test_how_far_off_those_are_that_ignore_settings(consumer, scaling, factors, tmp_path):
    facts = facts_of(write(tmp_path / "a", 0, SCALINGS[scaling]))
    found = {CONSUMERS[consumer].scale(facts.config, m) / m.scale for m in facts.modules}
    assert sorted(found) == pytest.approx(sorted(factors))
