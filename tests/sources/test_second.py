"""No merge holds one weight under two names, also where the sources share other modules."""

import json
from dataclasses import replace

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import IncompatibleError
from loramerge.formats.models import heads
from tests.helpers.files import folder, tensors
from tests.helpers.tiny_models import transformers
from tests.sources.test_identity import adapter, dense, united

H = 12
SHARED = {"norm_mlp.special": (5, H)}
TWO_NAMES = {
    "two names of the query": ({"attn.q": (H, H)}, {"attn.query": (H, H)}),
    "another spelling of it": ({"attn.Wq": (H, H)}, {"attn.q_proj": (H, H)}),
    "of the output": ({"attn.out": (H, H)}, {"attn.o_proj": (H, H)}),
    "of a layer of the MLP": ({"mlp.fc1": (20, H)}, {"mlp.up_proj": (20, H)}),
    "a part of the path left out": ({"attention.attention.query": (H, H)}, {"attention.query": (H, H)}),
    "a fused module and its part": ({"attn.my_qkv": (3 * H, H)}, {"attn.q": (H, H), "attn.k": (H, H)}),
    "grouped, a fused module and its part": ({"attn.qkv_fused": (2 * H, H)}, {"attn.v_proj": (4, H)}),
    "keys and values in one": ({"attn.to_kv": (2 * H, H)}, {"attn.to_k": (H, H), "attn.to_v": (H, H)}),
    "a gate and its value in one": ({"mlp.w13": (40, H)}, {"mlp.w1": (20, H), "mlp.w3": (20, H)}),
    "in one that is called as if it were one": ({"mlp.fc1": (40, H)}, {"mlp.fc1_g": (20, H)}),
    "the same under a name of Megatron": ({"mlp.dense_h_to_4h": (40, H)}, {"mlp.gate_proj": (20, H)}),
    "a name that tells no task": ({"mlp.linear_v": (20, H)}, {"mlp.up_proj": (20, H)}),
    "two names that tell none": ({"attn.foo": (H, H)}, {"attn.bar": (H, H)}),
    "another name of the part": ({"attn.q_proj": (H, H)}, {"self_attn.q_proj": (H, H)}),
    "a gate of experts and their router": ({"mlp.gate": (4, H)}, {"mlp.router": (4, H)}),
    "another home of experts": ({"moe.experts.0.up_proj": (20, H)}, {"ffn.experts.0.up_proj": (20, H)}),
}
DIFFERENT = {
    "query and value": ({"attn.q": (H, H)}, {"attn.v": (H, H)}),
    "of other shapes": ({"attn.q": (H, H)}, {"attn.query": (H + 1, H)}),
    "attention to itself and to others": ({"self_attn.q_proj": (H, H)}, {"cross_attn.query": (H, H)}),
    "a router and an expert": ({"moe.gate": (4, H)}, {"moe.experts.0.up_proj": (20, H)}),
    "parts of layers of two kinds": ({"mamba.in_proj": (40, H)}, {"feed_forward.gate_proj": (20, H)}),
    "of one known model": (
        {"self_attn.q_proj": (H, H)}, {"self_attn.o_proj": (H, H), "mlp.up_proj": (20, H)},
    ),
}  # fmt: skip


# A kind from the wild: A2, names that nobody knows.
@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize("name", TWO_NAMES)
def test_two_names_of_one_weight_are_refused_whatever_else_is_shared(name, turn):
    pair = [adapter(own | SHARED, seed=i) for i, own in enumerate(TWO_NAMES[name])][::turn]
    with pytest.raises(IncompatibleError, match="one weight under two names") as caught:
        united(*pair)
    assert "rename=" in str(caught.value)
    assert len(united(*pair, allow_disjoint=True).adapter) > 2


# A kind from the wild: A1, what is wrapped around a few layers under a name that nobody knows.
@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize("name", ["inner.attn.q_proj", "attn.q_proj.linear", "attn.q_proj.wrapped.weight"])
def test_a_wrapper_of_one_layer_is_refused(name, turn):
    whole = {"attn.q_proj": (H, H)} | SHARED
    partly = {f"model.layers.{layer}.{path}": each for layer in (0, 1) for path, each in whole.items()}
    partly[f"model.layers.0.{name}"] = partly.pop("model.layers.0.attn.q_proj")
    pair = [adapter(whole), adapter(partly, stem="", layers=[""])]
    pair[1] = replace(
        pair[1], slots={replace(t, path=t.path.strip(".")): s for t, s in pair[1].slots.items()}
    )
    with pytest.raises(IncompatibleError, match="one weight under two names"):
        united(*pair[::turn])
    assert len(united(*pair, allow_disjoint=True).adapter) == 5
    both = adapter({"attn.q_proj": (H, H), name: (H, H)}, seed=2)
    united(*pair, both)  # a source that has both says that they are two


@pytest.mark.parametrize("name", DIFFERENT)
def test_other_modules_are_not(name):
    shared = {} if name == "of one known model" else SHARED
    pair = [adapter(own | shared, seed=i) for i, own in enumerate(DIFFERENT[name])]
    assert len(united(*pair).adapter) >= 4


def test_a_source_that_has_both_says_that_they_are_two():
    both = {"attn.q": (H, H), "attn.query": (H, H)}
    united(
        adapter({"attn.q": (H, H)} | SHARED),
        adapter({"attn.query": (H, H)} | SHARED, seed=1),
        adapter(both, seed=2),
    )


def test_a_renaming_makes_one_of_them():
    pair = [adapter(own | SHARED, seed=i) for i, own in enumerate(TWO_NAMES["two names of the query"])]
    found = dense(united(*pair, rename={"model.layers.*.attn.q": "model.layers.*.attn.query"}).adapter)
    wanted = dense(pair[0])["model.layers.0.attn.q"] + dense(pair[1])["model.layers.0.attn.query"]
    np.testing.assert_allclose(found["model.layers.0.attn.query"], wanted, atol=1e-12)


HEADS, SIZE = 4, 3
QKV = ("q_proj", "k_proj", "v_proj")
CONFIGS = {  # the model's own config, and how its code takes the rows apart
    "GPT-NeoX": ("GPTNeoXConfig", {"hidden_size": H, "num_attention_heads": HEADS}, "query_key_value",
        lambda w: [w.reshape(HEADS, 3, SIZE, -1)[:, i].reshape(-1, w.shape[1]) for i in range(3)]),
    "BLOOM": ("BloomConfig", {"hidden_size": H, "n_head": HEADS}, "query_key_value",
        lambda w: [w.reshape(HEADS, 3, SIZE, -1)[:, i].reshape(-1, w.shape[1]) for i in range(3)]),
    "Falcon 7b": ("FalconConfig", {"hidden_size": H, "num_attention_heads": HEADS}, "query_key_value",
        lambda w: [w[:H], w[H : H + SIZE], w[H + SIZE :]]),
    "Falcon 40b": ("FalconConfig", {"hidden_size": H, "num_attention_heads": HEADS, "num_kv_heads": 2,
        "new_decoder_architecture": True}, "query_key_value",
        lambda w: [p.reshape(-1, w.shape[1]) for p in np.split(w.reshape(2, 4, SIZE, -1), [2, 3], axis=1)]),
    "Falcon RW": ("FalconConfig", {"hidden_size": H, "num_attention_heads": HEADS, "multi_query": False},
        "query_key_value",
        lambda w: [w.reshape(HEADS, 3, SIZE, -1)[:, i].reshape(-1, w.shape[1]) for i in range(3)]),
    "GPT-2": ("GPT2Config", {"n_embd": H, "n_head": HEADS}, "c_attn", lambda w: np.split(w, 3)),
    "InternLM2": ({"model_type": "internlm2", "num_attention_heads": HEADS, "num_key_value_heads": 2}, {},
        "wqkv",
        lambda w: [p.reshape(-1, w.shape[1]) for p in np.split(w.reshape(2, 4, SIZE, -1), [2, 3], axis=1)]),
    "ChatGLM": ({"model_type": "chatglm", "num_attention_heads": HEADS}, {}, "query_key_value",
        lambda w: [p.reshape(-1, w.shape[1]) for p in np.split(w.reshape(HEADS, 3 * SIZE, -1), 3, axis=1)]),
    "ChatGLM2": ({"model_type": "chatglm", "num_attention_heads": HEADS, "multi_query_attention": True,
        "multi_query_group_num": 2}, {}, "query_key_value",
        lambda w: np.split(w, [H, H + 2 * SIZE])),
    "StarCoder": ("GPTBigCodeConfig", {"n_embd": H, "n_head": HEADS}, "c_attn",
        lambda w: [w[:H], w[H : H + SIZE], w[H + SIZE :]]),
}  # fmt: skip
SIZES = {
    "InternLM2": (H, 2 * SIZE, 2 * SIZE),
    "ChatGLM2": (H, 2 * SIZE, 2 * SIZE),
    "Falcon 7b": (H, SIZE, SIZE),
    "Falcon 40b": (H, 2 * SIZE, 2 * SIZE),
    "StarCoder": (H, SIZE, SIZE),
}


@pytest.mark.parametrize("place", ["beside", "its base"])
@pytest.mark.parametrize("name", CONFIGS)
def test_rows_that_lie_by_heads_are_told_by_the_config_of_the_model(name, place, tmp_path):
    config, said, whole, apart = CONFIGS[name]
    sizes = SIZES.get(name, (H, H, H))
    split = {f"h.0.attn.{part}": (rows, H) for part, rows in zip(QKV, sizes, strict=True)}
    (tmp_path / "base").mkdir()
    base = {"base_model_name_or_path": f"{tmp_path}/base"}
    parts = folder(tmp_path / "parts", tensors(1, shapes=split), **base)
    fused = folder(tmp_path / "fused", tensors(2, shapes={f"h.0.attn.{whole}": (sum(sizes), H)}), **base)
    with pytest.raises(IncompatibleError, match=r"config\.json"):
        lm.combine([parts, fused])
    where = tmp_path / ("base" if place == "its base" else "parts")
    if isinstance(config, str):
        getattr(transformers, config)(**said).save_pretrained(where)
    else:  # of a model whose code lies beside its weights
        (where / "config.json").write_text(json.dumps(config))
    merge = lm.combine([parts, fused], "linear", dtype="float64")
    (found,) = (update.dense() for update in merge.adapter.values())
    ours, (theirs,) = dense(lm.load(parts)), (u.dense() for u in lm.load(fused).values())
    for part, have, given in zip(QKV, apart(found), apart(theirs), strict=True):
        np.testing.assert_allclose(have, given + ours[f"h.0.attn.{part}"], atol=1e-6)


def test_the_linear_attention_of_qwen3_next_is_taken_apart_as_its_code_does(tmp_path):
    model = {"model_type": "qwen3_next", "linear_num_key_heads": 2, "linear_key_head_dim": 3,
             "linear_num_value_heads": 4, "linear_value_head_dim": 5}  # fmt: skip
    outs = 2 * (2 * 3 + 2 * 2 * 5)
    qkv, z = heads.spans("in_proj_qkvz", model, outs)
    rows = np.arange(outs).reshape(2, -1)  # as the model's code views them: by key heads
    wanted = [part.reshape(-1) for part in np.split(rows, [3, 6, 16], axis=1)]
    np.testing.assert_array_equal(
        np.concatenate([np.arange(outs)[s] for s in qkv]), np.concatenate(wanted[:3])
    )
    np.testing.assert_array_equal(np.concatenate([np.arange(outs)[s] for s in z]), wanted[3])
    b, a = heads.spans("in_proj_ba", model, 8)
    assert [list(range(8))[s] for s in b] == [[0, 1], [4, 5]]
    assert [list(range(8))[s] for s in a] == [[2, 3], [6, 7]]


def test_a_config_of_another_model_tells_nothing():
    for model in ({}, {"model_type": "bloom", "n_head": 7}, {"model_type": "bloom", "n_head": "2"},
                  {"model_type": "bloom", "n_head": 10**9}, {"model_type": "new", "n_head": 2}):  # fmt: skip
        assert heads.spans("query_key_value", model, 36) is None


NAMED = {
    ("openai-community/gpt2", "c_attn", (H, H, H)),
    ("Qwen/Qwen-7B", "c_attn", (H, H, H)),
    ("bigcode/starcoderbase", "c_attn", (H, SIZE, SIZE)),
    ("THUDM/chatglm3-6b", "query_key_value", (H, SIZE, SIZE)),
    ("tiiuae/falcon-7b", "query_key_value", (H, SIZE, SIZE)),
}


@pytest.mark.parametrize(("base", "whole", "sizes"), sorted(NAMED))
def test_the_name_of_a_base_tells_where_there_is_one_group(base, whole, sizes):
    split = {f"attn.{part}": (rows, H) for part, rows in zip(QKV, sizes, strict=True)}
    first, second = adapter(split, base=base), adapter({f"attn.{whole}": (sum(sizes), H)}, seed=1, base=base)
    found = dense(united(first, second).adapter)
    ours = np.concatenate([dense(first)[f"model.layers.0.attn.{part}"] for part in QKV])
    theirs = dense(second)[f"model.layers.0.attn.{whole}"]
    merged = found.get(f"model.layers.0.attn.{whole}")
    if merged is None:
        merged = np.concatenate([found[f"model.layers.0.attn.{part}"] for part in QKV])
    np.testing.assert_allclose(merged, ours + theirs, atol=1e-12)
