"""mlx-lm itself, on tiny models: we read what it computes, and it loads what we write at that strength."""

import importlib.util
import json

import numpy as np
import pytest

import loramerge
from loramerge import Target

pytestmark = pytest.mark.conformance


@pytest.fixture(autouse=True)
def installed():
    """mlx-lm is here; asked for and absent is a failure, not a test passed over."""
    if importlib.util.find_spec("mlx_lm") is None:
        pytest.fail("mlx-lm is not installed: see docs/consumers.md for the command")


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "rms_norm_eps": 1e-5,
}
MIXED = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "head_dim": 4,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
    "max_position_embeddings": 64,
    "norm_topk_prob": True,
}
WORDS = [[1, 5, 9, 2, 30]]


def dense_model():
    import mlx.core as mx
    from mlx_lm.models import llama

    mx.random.seed(0)
    return llama.Model(llama.ModelArgs(model_type="llama", **SIZES))


def mixture():
    import mlx.core as mx
    from mlx_lm.models import qwen3_moe

    mx.random.seed(0)
    return qwen3_moe.Model(qwen3_moe.ModelArgs(model_type="qwen3_moe", **SIZES, **MIXED))


MODELS = {
    "linear layers": (dense_model, ["self_attn.q_proj", "mlp.down_proj"], 2),
    "all linear layers": (dense_model, None, 3),
    "an embedding and the head": (dense_model, ["self_attn.v_proj", "model.embed_tokens", "lm_head"], 1),
    "experts": (mixture, ["mlp.switch_mlp.up_proj", "mlp.switch_mlp.down_proj", "self_attn.q_proj"], 2),
}


def logits(model):
    import mlx.core as mx

    return np.array(model(mx.array(WORDS)))


def trained(folder, make, keys, layers, seed=1, rank=3, scale=1.7):
    """An adapter as mlx-lm's trainer saves it, with random factors. Returns the model with it."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model = make()
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0} | ({"keys": keys} if keys else {})
    model.freeze()
    linear_to_lora_layers(model, layers, parameters)
    rng = np.random.default_rng(seed)
    factors = {
        name: mx.array(rng.standard_normal(value.shape).astype("f4") * 0.3)
        for name, value in tree_flatten(model.trainable_parameters())
    }
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), factors)
    config = {"fine_tune_type": "lora", "num_layers": layers, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    model.load_weights(list(factors.items()), strict=False)
    return model


def fused(make, adapter):
    """The plain model with our updates in its weights."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_unflatten

    model = make()
    weights = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    for target, update in adapter.items():
        weight = weights[f"{target.path}.weight"]
        delta = update.dense().T if target.kind == "embedding" else update.dense()
        if target.kind == "expert":
            weight[target.index] += delta
        else:
            weight += delta
    model.update(tree_unflatten([(name, mx.array(value)) for name, value in weights.items()]))
    return model


def loaded_by_mlx(model, place):
    """The model with the adapter of a folder, as mlx-lm loads it."""
    from mlx_lm.tuner.utils import load_adapters

    return load_adapters(model, str(place))


@pytest.mark.parametrize(("make", "keys", "layers"), MODELS.values(), ids=MODELS)
def test_what_we_read_in_the_weights_is_what_mlx_computes(tmp_path, make, keys, layers):
    model = trained(tmp_path / "a", make, keys, layers)
    adapter = loramerge.load(tmp_path / "a")
    assert abs(logits(model) - logits(make())).max() > 0.05
    np.testing.assert_allclose(logits(fused(make, adapter)), logits(model), atol=2e-5)


@pytest.mark.parametrize(("make", "keys", "layers"), MODELS.values(), ids=MODELS)
def test_mlx_loads_a_merge_at_its_strength(tmp_path, make, keys, layers):
    trained(tmp_path / "a", make, keys, layers)
    trained(tmp_path / "b", make, keys, layers - 1 or 1, seed=2, rank=2, scale=0.4)
    merged = loramerge.combine(
        [tmp_path / "a", tmp_path / "b"], method="cat", weights=[1, -0.5], out=tmp_path / "m"
    )
    assert merged.adapter.dialect == "mlx"
    loaded = loaded_by_mlx(make(), tmp_path / "m")
    np.testing.assert_allclose(logits(loaded), logits(fused(make, merged.adapter)), atol=2e-5)


def test_mlx_loads_what_was_converted_from_peft(tmp_path):
    rng = np.random.default_rng(3)
    path = "model.layers.1.self_attn.q_proj"
    values = {
        f"base_model.model.{path}.lora_A.weight": rng.standard_normal((2, 16)).astype("f4"),
        f"base_model.model.{path}.lora_B.weight": rng.standard_normal((16, 2)).astype("f4"),
    }
    adapter = loramerge.from_state_dict(values, alpha=3)
    loramerge.save(adapter, tmp_path / "m", format="mlx")
    loaded = loaded_by_mlx(dense_model(), tmp_path / "m")
    np.testing.assert_allclose(logits(loaded), logits(fused(dense_model, adapter)), atol=2e-5)
    assert Target(path) in adapter
