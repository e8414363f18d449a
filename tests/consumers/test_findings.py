"""Every sentence that a user gets of a consumer, from a folder that provokes it; and what mends it does."""

import json
import shlex

import numpy as np
import pytest

import loramerge as lm
from loramerge.consumers import CONSUMERS
from tests.consumers.hostile import HOSTILE
from tests.helpers.files import Cli

SAYS = {  # (consumer, folder) -> (effect, words of its sentence) of each finding
    ("peft", "an adapter's name"): [("ignores", "all factors, whose keys hold the adapter's name")],
    ("peft", "without a prefix"): [("ignores", "all factors, whose keys have no base_model.model")],
    ("peft", "enable_lora"): [("rejects", "enable_lora is [True, False, True]")],
    ("peft", "unknown type"): [("rejects", "it knows no adapter of type FINEGATES")],
    ("peft", "one file"): [("rejects", "it loads a folder with an adapter_config.json")],
    ("transformers", "an adapter's name"): [("ignores", "all factors")],
    ("transformers", "unknown type"): [("rejects", "FINEGATES")],
    ("transformers", "enable_lora"): [("rejects", "enable_lora")],
    ("transformers", "one file"): [("rejects", "this is one file")],
    ("vllm", "rank 24"): [("rejects", "rank 24 is above 16, its default --max-lora-rank")],
    ("vllm", "rank 24 in one"): [("rejects", "rank 24 is above 16")],
    ("vllm", "dora"): [("rejects", "use_dora is True"), ("rejects", "lora_magnitude_vector")],
    ("vllm", "lora_bias"): [("rejects", "lora_bias is True"), ("rejects", "lora_B.bias and 7 more")],
    ("vllm", "bias without tensors"): [("rejects", "bias is lora_only")],
    ("vllm", "pissa"): [("rejects", "init_lora_weights is pissa_niter_4")],
    ("vllm", "alora"): [("rejects", "alora_invocation_tokens is [1, 2]")],
    ("vllm", "layer_replication"): [("rejects", "layer_replication is [[0, 1], [0, 1]]")],
    ("vllm", "qalora"): [("rejects", "use_qalora is True")],
    ("vllm", "bdlora"): [("rejects", "use_bdlora")],
    ("vllm", "without target_modules"): [("rejects", "does not give target_modules")],
    ("vllm", "a head"): [("rejects", "modules_to_save lists lm_head, and it takes only score")],
    ("vllm", "a head not listed"): [("rejects", "no tensor such as base_model.model.lm_head.weight")],
    ("vllm", "an adapter's name"): [("rejects", "lora_A.default.weight and 15 more")],
    ("vllm", "convolution"): [("rejects", "it adapts no convolution (conv)")],
    ("vllm", "convolution in a layer"): [("rejects", "it adapts no convolution (model.layers.0.conv)")],
    ("vllm", "adalora"): [("rejects", "type ADALORA")],
    ("vllm", "unknown type"): [("rejects", "type FINEGATES")],
    ("vllm", "enable_lora"): [("rejects", "enable_lora is [True, False, True]")],
    ("vllm", "a bias in a layer"): [("rejects", "bias is all"), ("rejects", "q_proj.base_layer.bias")],
    ("vllm", "without lora_alpha"): [("rejects", "does not give lora_alpha")],
    ("vllm", "one file"): [("rejects", "this is one file")],
    ("sglang", "rslora"): [("scales", "SGLang ignores use_rslora: the adapter would act 2 times too weak")],
    ("sglang", "mixed ranks"): [
        ("rejects", "it wants rank 4 in every module, and model.layers.0.mlp.down_proj has 6"),
        ("scales", "ignores rank_pattern: the adapter would act in 4 of 8 modules from 2 times too weak"),
    ],
    ("sglang", "patterns"): [
        ("rejects", "it wants rank 4"),
        ("scales", "use_rslora and rank_pattern and alpha_pattern"),
    ],
    ("sglang", "rank 24 in one"): [("rejects", "has 24"), ("scales", "6 times too strong")],
    ("sglang", "dora"): [("rejects", "use_dora is True")],
    ("sglang", "lora_bias"): [("rejects", "lora_bias is True")],
    ("sglang", "pissa"): [("ignores", "the change of the base weights")],
    ("sglang", "alora"): [("ignores", "the tokens that switch an activated LoRA on")],
    ("sglang", "layer_replication"): [("ignores", "the layers that layer_replication repeats")],
    ("sglang", "qalora"): [("ignores", "the pooling of QALoRA")],
    ("sglang", "bdlora"): [("ignores", "the blocks of BD-LoRA")],
    ("sglang", "target_modules as a pattern"): [("rejects", "must be a list of names, and is '.*(proj)'")],
    ("sglang", "without target_modules"): [("rejects", "must be a list of names, and is None")],
    ("sglang", "a classifier"): [("ignores", "a tensor beside the pairs (base_model.model.score.weight)")],
    ("sglang", "a head"): [("ignores", "a tensor beside the pairs (base_model.model.lm_head.weight)")],
    ("sglang", "a head not listed"): [("ignores", "a tensor beside the pairs")],
    ("sglang", "q alone"): [("rejects", "model.layers.0.self_attn has q_proj without v_proj")],
    ("sglang", "k and v"): [("rejects", "has k_proj, v_proj without q_proj")],
    ("sglang", "up alone"): [("rejects", "model.layers.0.mlp has up_proj without gate_proj")],
    ("sglang", "embedding not listed"): [("ignores", "embed_tokens, which target_modules does not list")],
    ("sglang", "convolution"): [("ignores", "1 of 9 modules, such as conv: it looks for `layers.N.`")],
    ("sglang", "convolution in a layer"): [("rejects", "no convolution (model.layers.0.conv)")],
    ("sglang", "a bias in a layer"): [("ignores", "bias (all)"), ("rejects", "q_proj.base_layer.bias for")],
    ("sglang", "added tokens"): [("rejects", "added_tokens.json lists tokens")],
    ("sglang", "gpt2"): [("ignores", "all modules, such as transformer.h.0")],
    ("sglang", "adalora"): [("rejects", "type ADALORA")],
    ("sglang", "unknown type"): [("rejects", "type FINEGATES")],
    ("sglang", "experts"): [("rejects", "it wants rank 2"), ("rejects", "it adapts no fused experts")],
    ("sglang", "enable_lora"): [("rejects", "enable_lora"), ("rejects", "it wants rank 2")],
    ("sglang", "without lora_alpha"): [("rejects", "does not give lora_alpha")],
    ("sglang", "one file"): [("rejects", "this is one file")],
    ("llama.cpp", "rslora"): [("scales", "use_rslora: the adapter would act 2 times too weak")],
    ("llama.cpp", "patterns"): [("scales", "use_rslora and rank_pattern and alpha_pattern")],
    ("llama.cpp", "dora"): [("rejects", "use_dora is True"), ("rejects", "stops at base_model")],
    ("llama.cpp", "lora_bias"): [("rejects", "lora_bias is True"), ("rejects", "lora_B.bias and 7 more")],
    ("llama.cpp", "pissa"): [("ignores", "the change of the base weights")],
    ("llama.cpp", "layer_replication"): [("ignores", "layer_replication")],
    ("llama.cpp", "qalora"): [("ignores", "QALoRA")],
    ("llama.cpp", "bdlora"): [("ignores", "BD-LoRA")],
    ("llama.cpp", "a classifier"): [("rejects", "its converter stops at base_model.model.score.weight")],
    ("llama.cpp", "a head"): [("rejects", "lm_head.weight")],
    ("llama.cpp", "a head not listed"): [("rejects", "lm_head.weight")],
    ("llama.cpp", "an adapter's name"): [("rejects", "lora_A.default.weight and 15 more")],
    ("llama.cpp", "convolution"): [("rejects", "it adapts no convolution (conv)")],
    ("llama.cpp", "convolution in a layer"): [("rejects", "it adapts no convolution")],
    ("llama.cpp", "without lora_alpha"): [("rejects", "does not give lora_alpha")],
    ("llama.cpp", "adalora"): [("rejects", "type ADALORA")],
    ("llama.cpp", "unknown type"): [("rejects", "type FINEGATES")],
    ("llama.cpp", "experts"): [("rejects", "it adapts no fused experts")],
    ("llama.cpp", "enable_lora"): [("rejects", "enable_lora")],
    ("llama.cpp", "a bias in a layer"): [("ignores", "bias (all)"), ("rejects", "q_proj.base_layer.bias")],
    ("llama.cpp", "one file"): [("rejects", "this is one file")],
    ("diffusers", "plain"): [("rejects", "finds nothing to load: it reads the names of diffusers, k")],
    ("diffusers", "sd15"): [],
    ("diffusers", "sd15 with two answers"): [("rejects", "beside its own names it takes no alpha, such as")],
    ("diffusers", "sd15 with more"): [("ignores", "a tensor beside the pairs (bundle_emb.style.clip_l)")],
    ("comfyui", "sd15 with more"): [("ignores", "a tensor beside the pairs (bundle_emb.style.clip_l)")],
    ("diffusers", "sd15 with alphas"): [("rejects", "beside its own names it takes no alpha, such as unet.")],
    ("diffusers", "sd15 without a part"): [("ignores", "keys without unet. before them, such as mid_block.")],
    ("diffusers", "sd15 in the way of kohya"): [("rejects", "of a UNet in its own names it reads no unet")],
    ("diffusers", "sd15 with a name"): [("ignores", "keys that hold an adapter's name, such as unet.down_")],
    ("diffusers", "sd15 without targets"): [("rejects", "does not give unet.target_modules")],
    ("diffusers", "sd15 of other settings"): [("rejects", "lora_adapter_metadata says nothing of unet")],
    ("diffusers", "sd15 of another rank"): [("scales", "do not say how: the lora_adapter_metadata of")],
    ("diffusers", "flux with two answers"): [("rejects", "alpha tensors and lora_adapter_metadata")],
    ("diffusers", "flux with alphas"): [],
    ("comfyui", "sd15 with alphas"): [],
    ("comfyui", "flux with alphas"): [],
    ("peft", "without lora_alpha"): [("scales", "PEFT cannot load it as it is meant, for its files do no")],
    ("transformers", "without lora_alpha"): [("scales", "a does not give lora_alpha")],
    ("diffusers", "kohya with DoRA"): [("ignores", "the DoRA magnitudes (lora_unet_a.dora_scale")],
    ("diffusers", "kohya"): [],
    ("diffusers", "kohya with LoHa"): [("rejects", "lora_down and lora_up only, and no lora_unet_down")],
    ("diffusers", "kohya with LoKr"): [("rejects", "attn1_to_q.lokr_w1")],
    ("diffusers", "kohya with Tucker"): [("rejects", "conv1.lora_mid.weight")],
    ("diffusers", "kohya with a difference"): [("rejects", "attn1_to_q.diff")],
    ("diffusers", "comfy"): [("ignores", "keys such as diffusion_model.input_blocks.1.1.transformer_blocks")],
    ("comfyui", "comfy"): [],
    ("diffusers", "numbered"): [("rejects", "and this is a numbered SAM LoRA (w_a_000)")],
    ("comfyui", "plain"): [
        ("ignores", "keys with base_model.model"),
        ("scales", "ComfyUI reads no adapter_config.json: the adapter would act 2 times too weak"),
    ],
    ("comfyui", "sd15"): [],
    ("comfyui", "sd15 of old"): [],
    ("diffusers", "sd15 with attention"): [],
    ("comfyui", "sd15 with attention"): [("ignores", "all tensors, such as unet.mid_block.attentions")],
    ("comfyui", "sd15 with two answers"): [],
    ("diffusers", "sd15 with a config"): [],
    ("comfyui", "sd15 with a config"): [
        ("scales", "ComfyUI reads no lora_adapter_metadata: the adapter would act 2 times too weak"),
    ],
    ("vllm", "gpt2"): [("unknown", "may or may not load it as it is meant: it is for a model")],
    ("llama.cpp", "gpt2"): [("unknown", "may or may not load it")],
    ("mlx", "plain"): [("rejects", "finds nothing to load: it reads the names of mlx-lm, and")],
    ("mlx", "mlx"): [],
    ("mlx", "mlx of two ranks"): [("rejects", "says rank 4, and model.layers.0.q.lora_a has 2")],
    ("mlx", "mlx without a scale"): [("rejects", "adapter_config.json does not give scale, num_layers")],
    ("mlx", "mlx renamed"): [("rejects", "it reads adapters.safetensors, and the weights are in 0000100_")],
    ("mlx", "mlx with more"): [("rejects", "it takes no tensor such as model.norm.weight")],
    ("vllm", "mlx"): [("rejects", "it reads the names of PEFT, and this is an mlx-lm adapter")],
}  # fmt: skip


@pytest.mark.parametrize(("consumer", "name"), SAYS)
def test_a_finding_says_what_happens_and_why(consumer, name, tmp_path):
    found = lm.check(HOSTILE[name](tmp_path / "a"), consumer)
    said = [(finding.effect, finding.sentence) for finding in found]
    assert len(said) == len(SAYS[consumer, name]), said
    for (effect, sentence), (wanted, words) in zip(said, SAYS[consumer, name], strict=True):
        assert effect == wanted
        assert words in sentence
        assert sentence.startswith(CONSUMERS[consumer].title)
        assert sentence.endswith(".")
        assert sentence.isprintable()
    assert not found or any(finding.mend or finding.command for finding in found)


@pytest.mark.parametrize("consumer", ["peft", "transformers", "vllm", "sglang", "llama.cpp"])
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_said_of_what_loads_well(name, consumer, tmp_path):
    if (consumer, name) not in SAYS and "peft" in _names(name):
        assert not lm.check(HOSTILE[name](tmp_path / "a"), consumer)


def _names(folder):
    return "other" if folder.startswith(("sd15", "flux", "kohya", "comfy", "numbered", "mlx")) else "peft"


def test_a_command_that_leaves_something_out_says_so(tmp_path):
    (finding,) = lm.check(HOSTILE["a classifier"](tmp_path / "a"), "llama.cpp")
    assert finding.mend == "leave out all but the pairs (base_model.model.score.weight …)"
    assert " --extras drop " in finding.command
    (finding,) = lm.check(HOSTILE["dora"](tmp_path / "b"), "sglang")
    assert finding.mend.startswith("loramerge cannot rewrite it: ")
    assert "needs the weights of the base model" in finding.mend
    assert not finding.command


@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_the_command_that_is_offered_mends_it(name, consumer, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    place = HOSTILE[name](tmp_path / "a")
    commands = {finding.command for finding in lm.check(place, consumer)} - {""}
    assert len(commands) <= 1
    for command in commands:
        program, *words = shlex.split(command.replace("--alpha A", "--alpha 8"))
        assert program == "loramerge"
        assert Cli(capsys)(*words).code == 0
        left = lm.check(words[-1], consumer)
        assert not any("finds nothing to load" in finding.sentence for finding in left)
        assert words[0] == "convert" or all(finding.effect == "unknown" for finding in left)


@pytest.mark.parametrize("name", ["kohya with LoHa", "sd15 with a config"])
def test_pairs_in_other_names_than_those_of_peft_are_pairs(name, tmp_path):
    consumer = "diffusers" if name.startswith("kohya") else "comfyui"
    (finding,) = lm.check(HOSTILE[name](tmp_path / "a"), consumer)
    assert finding.command
    assert "--extras" not in finding.command
    assert "the pairs" not in finding.mend


def test_an_npz_of_mlx_is_rewritten_and_no_name_is_changed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    arrays = {"model.layers.0.self_attn.q_proj.lora_a": np.ones((6, 2), "f4"),
              "model.layers.0.self_attn.q_proj.lora_b": np.ones((2, 5), "f4")}  # fmt: skip
    np.savez(tmp_path / "a" / "adapters.npz", **arrays)
    said = {
        "fine_tune_type": "lora",
        "num_layers": 1,
        "lora_parameters": {"rank": 2, "scale": 3.0, "dropout": 0},
    }
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(said))
    (finding,) = lm.check("a", "mlx")
    assert "the weights are in adapters.npz" in finding.sentence
    assert not finding.mend
    assert Cli(capsys)(*shlex.split(finding.command)[1:]).code == 0
    assert lm.check(shlex.split(finding.command)[-1], "mlx") == []
