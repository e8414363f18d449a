"""PEFT's and transformers' own code: they load what we say they load, at the strength we say."""

import warnings

import numpy as np
import pytest

import loramerge as lm
from loramerge.consumers import CONSUMERS
from loramerge.consumers.check import facts_of
from loramerge.consumers.peft import TYPES
from tests.helpers import zoo
from tests.helpers.files import read, save_file
from tests.helpers.tiny_models import QUIET, LoraLayer, base, llama, peft, save_adapter, torch, transformers

pytestmark = QUIET

MLP = ["q_proj", "v_proj", "down_proj"]
PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": MLP}
INPUTS = {
    "plain": PLAIN,
    "rslora": PLAIN | {"use_rslora": True},
    "mixed ranks": PLAIN | {"rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 6}},
    "patterns": PLAIN | {"alpha_pattern": {"v_proj": 3, "mlp.down_proj": 16}, "rank_pattern": {"q_proj": 2}},
    "embedding": PLAIN | {"target_modules": [*MLP, "embed_tokens"]},
    "all": PLAIN | {"use_rslora": True, "rank_pattern": {"q_proj": 2, "embed_tokens": 3},
                    "alpha_pattern": {"embed_tokens": 5}, "target_modules": [*MLP, "embed_tokens"]},
}  # fmt: skip


def loaded_by_peft(make, place):
    """The base with an adapter, after PEFT found every tensor of it."""
    model = peft.PeftModel(make(), peft.PeftConfig.from_pretrained(place))
    result = model.load_adapter(place, "other")
    assert not result.unexpected_keys
    assert not [name for name in result.missing_keys if ".other." in name or name.endswith(".other")]
    return model


def loaded_by_transformers(make, place):
    model = make()
    result = model.load_adapter(str(place), adapter_name="other")
    assert not result.missing_keys
    assert not result.unexpected_keys
    return model


def layers(model):
    """Module path -> layer that PEFT put there."""
    return {
        path.removeprefix("base_model.model."): layer
        for path, layer in model.named_modules()
        if isinstance(layer, LoraLayer) and "other" in layer.scaling
    }


def delta(layer):
    """ΔW as (out, in); PEFT keeps that of an embedding as (tokens, dim)."""
    found = layer.get_delta_weight("other").detach().double()
    if isinstance(layer.get_base_layer(), torch.nn.Embedding):
        found = found.T
    return found.reshape(len(found), -1).numpy()


LOADERS = {"peft": loaded_by_peft, "transformers": loaded_by_transformers}


@pytest.mark.parametrize("consumer", LOADERS)
@pytest.mark.parametrize("name", INPUTS)
def test_its_scaling_rule_is_the_one_that_we_hold_it_to(name, consumer, tmp_path):
    place = save_adapter(tmp_path / "a", llama, 1, INPUTS[name])
    found = layers(LOADERS[consumer](lambda: base(llama), place))
    facts = facts_of(place)
    assert {module.place for module in facts.modules} == set(found)
    assert not CONSUMERS[consumer].findings(facts)
    for module in facts.modules:
        own = found[module.place].scaling["other"]
        assert own == pytest.approx(CONSUMERS[consumer].scale(facts.config, module), rel=1e-12)
        assert own == pytest.approx(module.scale, rel=1e-12)


@pytest.mark.parametrize("consumer", LOADERS)
@pytest.mark.parametrize("profile", ["portable", "compact"])
@pytest.mark.parametrize("name", INPUTS)
def test_it_loads_every_tensor_of_a_merge_as_it_is_meant(name, profile, consumer, tmp_path):
    places = [save_adapter(tmp_path / n, llama, i, INPUTS[name]) for i, n in enumerate("ab")]
    merge = lm.combine(places, weights=[0.7, -0.3], profile=profile, consumer=consumer, out=tmp_path / "m")
    found = layers(LOADERS[consumer](lambda: base(llama), tmp_path / "m"))
    assert {target.path for target in merge.adapter} == set(found)
    for target in merge.adapter:
        assert np.allclose(delta(found[target.path]), merge.adapter[target].dense(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("profile", ["portable", "compact"])
@pytest.mark.parametrize(
    ("make", "targets"), [(zoo.Convolutions, ["line", "square", "cube"]), (zoo.Words, ["emb", "lin"])]
)
def test_peft_loads_other_kinds_of_layers_as_they_are_meant(make, targets, profile, tmp_path):
    config = {"r": 2, "lora_alpha": 6, "use_rslora": True, "rank_pattern": {targets[1]: 3}}
    places = [
        zoo.save(tmp_path / n, make, i, config | {"target_modules": targets}) for i, n in enumerate("ab")
    ]
    merge = lm.combine(places, profile=profile, consumer="peft", out=tmp_path / "m")
    found = layers(loaded_by_peft(lambda: zoo.base(make), tmp_path / "m"))
    assert len(found) == len(merge.adapter) == len(targets)
    for target in merge.adapter:
        assert np.allclose(delta(found[target.path]), merge.adapter[target].dense(), rtol=1e-5, atol=1e-6)


def test_transformers_loads_convolutions_as_they_are_meant(tmp_path):
    def make():
        sizes = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return transformers.ResNetModel(transformers.ResNetConfig(num_channels=3, **sizes)).eval()

    config = {"r": 2, "lora_alpha": 6, "use_rslora": True, "target_modules": ["convolution"]}
    places = [save_adapter(tmp_path / n, make, i, config) for i, n in enumerate("ab")]
    merge = lm.combine(places, consumer="transformers", out=tmp_path / "m")
    found = layers(loaded_by_transformers(make, tmp_path / "m"))
    assert len(found) == len(merge.adapter) > 2
    for target in merge.adapter:
        assert np.allclose(delta(found[target.path]), merge.adapter[target].dense(), rtol=1e-5, atol=1e-6)


def renamed(place, out, change):
    """The same folder with other keys."""
    out.mkdir()
    (out / "adapter_config.json").write_text((place / "adapter_config.json").read_text())
    values = {change(name): value for name, value in read(place / "adapter_model.safetensors").items()}
    save_file(values, out / "adapter_model.safetensors", {"format": "pt"})
    return out


@pytest.mark.parametrize(
    ("consumer", "change"),
    [
        ("peft", lambda key: key.replace(".weight", ".default.weight")),
        ("peft", lambda key: key.removeprefix("base_model.model.")),
        ("transformers", lambda key: key.replace(".weight", ".default.weight")),
    ],
)
def test_it_passes_over_keys_that_we_say_it_ignores(change, consumer, tmp_path):
    place = renamed(save_adapter(tmp_path / "a", llama, 1, PLAIN), tmp_path / "b", change)
    (finding,) = lm.check(place, consumer)
    assert finding.effect == "ignores"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(AssertionError):
            LOADERS[consumer](lambda: base(llama), place)

    lm.combine([place], consumer=consumer, out=tmp_path / "mended")
    assert not lm.check(tmp_path / "mended", consumer)
    LOADERS[consumer](lambda: base(llama), tmp_path / "mended")


def test_transformers_does_not_need_the_prefix(tmp_path):
    place = save_adapter(tmp_path / "a", llama, 1, PLAIN)
    place = renamed(place, tmp_path / "b", lambda key: key.removeprefix("base_model.model."))
    assert not lm.check(place, "transformers")
    assert len(layers(loaded_by_transformers(lambda: base(llama), place))) == 6


def test_the_types_of_adapters_are_those_of_peft():
    known = {kind.value for kind in peft.PeftType}
    assert known <= TYPES
    assert TYPES <= known
