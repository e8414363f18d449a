"""llama.cpp's own converter, out of the archive of llama-cpp-python: what it stops at, and the strength."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import loramerge as lm
from loramerge.consumers import CONSUMERS
from loramerge.consumers.check import facts_of
from tests.consumers.hostile import HOSTILE
from tests.consumers.inputs import SCALINGS, write
from tests.consumers.own_code import archive, unpacked
from tests.consumers.turning import SQUARE, turning

pytestmark = pytest.mark.conformance
LLAMA_CPP = CONSUMERS["llama.cpp"]
NAMES = {"v_proj": "attn_v", "k_proj": "attn_k", "q_proj": "attn_q", "down_proj": "ffn_down"}
BASE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 12, "hidden_size": 6,
    "intermediate_size": 10, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 4, "max_position_embeddings": 32, "rms_norm_eps": 1e-6, "hidden_act": "silu",
}  # fmt: skip


@pytest.fixture(scope="module")
def converter(tmp_path_factory):
    """Its folder, with a base model's config in it."""
    place = unpacked(
        archive("llama_cpp_python-*.tar.gz"), "vendor/llama.cpp", tmp_path_factory.mktemp("llama")
    )
    (place / "base").mkdir()
    (place / "base" / "config.json").write_text(json.dumps(BASE))
    return place


def convert(converter, place, out):
    """Run it on an adapter."""
    script = converter / "convert_lora_to_gguf.py"
    return subprocess.run(
        [sys.executable, script, "--base", converter / "base", "--outfile", out, place],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def deltas(converter, file):
    """Name -> what llama.cpp adds: alpha / rank · b @ a, the rank being that of the tensor."""
    reader = "gguf-py"
    code = (
        f"import sys; sys.path.insert(0, {str(converter / reader)!r}); import gguf, numpy as np\n"
        f"r = gguf.GGUFReader({str(file)!r}); alpha = r.fields['adapter.lora.alpha'].contents()\n"
        "t = {x.name: np.array(x.data, np.float64) for x in r.tensors}\n"
        "s = {k[:-7]: alpha / t[k].shape[-1] * t[k] @ t[k[:-1] + 'a'] for k in t if k.endswith('.lora_b')}\n"
        f"np.savez({str(file) + '.npz'!r}, **s)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    return dict(np.load(f"{file}.npz"))


def as_gguf(path, delta):
    """(name, ΔW) there: q and k have their rotary halves interleaved."""
    _, _, layer, _, last = path.split(".")
    heads = {"q_proj": 2, "k_proj": 1}.get(last)
    if heads:
        delta = delta.reshape(heads, 2, len(delta) // heads // 2, -1).swapaxes(1, 2).reshape(delta.shape)
    return f"blk.{layer}.{NAMES[last]}.weight", delta


@pytest.mark.parametrize("scaling", SCALINGS)
def test_it_converts_a_merge_as_it_is_meant(converter, scaling, tmp_path):
    places = [write(tmp_path / n, i, SCALINGS[scaling]) for i, n in enumerate("ab")]
    merge = lm.combine(places, weights=[0.7, -0.3], consumer="llama.cpp", out=tmp_path / "m")
    done = convert(converter, tmp_path / "m", tmp_path / "m.gguf")
    assert done.returncode == 0, done.stderr
    found = deltas(converter, tmp_path / "m.gguf")
    wanted = dict(as_gguf(target.path, merge.adapter[target].dense()) for target in merge.adapter)
    assert found.keys() == wanted.keys()
    for name, delta in wanted.items():
        assert np.allclose(found[name], delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_its_scaling_rule_is_the_one_that_we_hold_it_to(converter, scaling, tmp_path):
    place = write(tmp_path / "a", 0, SCALINGS[scaling])
    assert convert(converter, place, tmp_path / "a.gguf").returncode == 0
    found = deltas(converter, tmp_path / "a.gguf")
    adapter = lm.load(place)
    ours = {target.path: adapter[target].dense() for target in adapter}
    for module in facts_of(place).modules:
        off = LLAMA_CPP.scale(facts_of(place).config, module) / module.scale
        name, delta = as_gguf(module.place, ours[module.place])
        assert np.allclose(found[name], off * delta, rtol=1e-5, atol=1e-6)


GPT2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": 1, "n_embd": 6, "n_head": 2}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A folder with the config of a GPT-2."""
    place = tmp_path_factory.mktemp("gpt2")
    (place / "config.json").write_text(json.dumps(GPT2 | {"n_ctx": 32, "layer_norm_epsilon": 1e-5}))
    return place


def conv1d(converter, base, place, out):
    """What llama.cpp adds to each of the layers of a GPT-2."""
    script = converter / "convert_lora_to_gguf.py"
    words = [sys.executable, script, "--base", base, "--outfile", out, place]
    subprocess.run(words, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return deltas(converter, out)


def test_it_turns_what_is_for_a_conv1d(converter, gpt2, tmp_path):
    found = conv1d(converter, gpt2, turning(tmp_path / "a", 0), tmp_path / "a.gguf")
    wanted = {target.path: update.dense() for target, update in lm.load(tmp_path / "a").items()}
    assert np.allclose(found["blk.0.attn_output.weight"], wanted[SQUARE].T, rtol=1e-5, atol=1e-6)


def test_a_merge_that_is_written_for_it_comes_out_as_it_is_meant(converter, gpt2, tmp_path):
    places = [turning(tmp_path / name, seed) for seed, name in enumerate("ab")]
    merge = lm.combine(places, "cat", weights=[0.7, -0.3], consumer="llama.cpp", out=tmp_path / "m")
    found = conv1d(converter, gpt2, tmp_path / "m", tmp_path / "m.gguf")
    names = {"c_attn": "attn_qkv", "attn.c_proj": "attn_output", "c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
    for end, name in names.items():
        (wanted,) = [merge.adapter[target].dense() for target in merge.adapter if target.path.endswith(end)]
        assert np.allclose(found[f"blk.0.{name}.weight"], wanted, rtol=1e-5, atol=1e-6)


BASELESS = ("gpt2", "one file", "sd15", "kohya", "numbered", "mlx")  # for no Llama, or no folder
STOPS = [name for name in HOSTILE if not name.startswith(BASELESS)]  # each takes seconds


@pytest.mark.parametrize("name", STOPS)
def test_it_stops_where_we_say_it_stops_and_nowhere_else(converter, name, tmp_path):
    place = HOSTILE[name](tmp_path / "a")
    done = convert(converter, place, tmp_path / "a.gguf")
    refused = any(finding.effect == "rejects" for finding in lm.check(place, "llama.cpp"))
    assert (done.returncode != 0) == refused, done.stderr
