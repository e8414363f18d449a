"""The third answer of `check`: nobody can tell from these files whether a program loads them so."""

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.consumers.models import UNTOLD, by_name
from tests.helpers.files import Cli, bare, folder, key, tensors

P = "base_model.model."
LLAMA = {"model.layers.0.self_attn.q_proj": (6, 5), "model.layers.0.self_attn.v_proj": (4, 5)}
PEFTS = ["peft", "transformers"]
Q = f"{P}model.layers.0.self_attn.q_proj"


def llama(path, more=None, shapes=LLAMA, **changes):
    names = sorted({name.rpartition(".")[2] for name in shapes})
    changes = {"base_model_name_or_path": "tiny"} | changes
    return folder(path, tensors(shapes=shapes) | (more or {}), target_modules=names, **changes)


def answer(path, consumer):
    effects = {finding.effect for finding in lm.check(path, consumer)}
    return None if effects == {"unknown"} else not effects


UNREAD = {
    "LoRA-XS": {f"{Q}.lora_latent.weight": np.ones((2, 2), "f4")},
    "magnitudes without use_dora": {f"{Q}.lora_magnitude_vector": np.ones(6, "f4")},
    "lora_mid": {f"{Q}.lora_mid.weight": np.ones((2, 2), "f4")},
    "lora_gate": {f"{Q}.lora_gate.weight": np.ones((2, 2), "f4")},
    "lora_route": {f"{Q}.lora_route.weight": np.ones((2, 2), "f4")},
    "lora_C": {f"{Q}.lora_C": np.ones(2, "f4")},
    "a mask": {f"{Q}.mask": np.ones(2, "f4")},
    "I8 factors": {f"{Q}.lora_A.weight": np.ones((2, 5), "i1"), f"{Q}.lora_B.weight": np.ones((6, 2), "i1")},
    "experts without their parameters": {
        key("model.layers.0.mlp.experts", side): np.ones(shape, "f4") for side, shape in
        (("A", (4, 5)), ("B", (6, 4)))
    },
}  # fmt: skip


# A kind from the wild: B2, an unread file.
@pytest.mark.parametrize("consumer", PEFTS)
@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_read_is_never_said_to_load(name, consumer, tmp_path):
    assert answer(llama(tmp_path / "a", UNREAD[name]), consumer) is None


@pytest.mark.parametrize("consumer", ["peft", "vllm", "diffusers", "comfyui"])
def test_a_tensor_that_is_no_pair_does_not_load(consumer, tmp_path):
    source = bare(tmp_path / "a.safetensors", {"lora_unet_whatever.weight": np.ones((2, 3), "f4")})
    assert answer(source, consumer) is False


FINE_TUNES = {"meta-llama/Llama-3.1-8B": True, "me/llama-2-7b-sql": True, "Qwen/Qwen3-4B-Base": True,
              "Qwen/Qwen2.5-0.5B": True, "google/gemma-2-2b": True, "mistralai/Mistral-7B-v0.1": True,
              "stabilityai/stablelm-2-1_6b": False, "tiiuae/falcon-7b-instruct": False,
              "bigscience/bloomz-7b1": False, "acme/llama-nova": None, "meta-llama/Llama-5-8B": None,
              "mistralai/Mistral-Small-4": None, "acme/mixtral-nova": None}  # fmt: skip


@pytest.mark.parametrize(
    "name", ["gpt-oss-200b", "gpt-oss2-20b", "gpt20", "gpt2-moe", "phi-45", "phi-4-mini-flash", "exaone-3000",
             "deepseek-v40", "deepseek-v4.1", "llama-3-moe-8x8b", "llama-3-like", "qwen3-9000b", "dbrx2",
             "olmoe2", "olmo-2-mamba", "lfm2-8b-a1b", "glm-4.6v", "glm-4.7-flash", "zephyr-7b-gemma-v0.1",
             "opt-9000b"]
)  # fmt: skip
def test_a_name_that_only_begins_as_one_that_is_known_tells_no_model(name):
    assert by_name(f"acme/{name}") in ("", UNTOLD)


@pytest.mark.parametrize("base", FINE_TUNES)
def test_the_name_of_a_base_tells_before_its_modules_do(base, tmp_path):
    assert answer(llama(tmp_path / "a", base_model_name_or_path=base), "vllm") is FINE_TUNES[base]


VISION = "encoder.layer.0.attention.attention.query"
RENAMED = {
    "a ViT by its module": ({}, f"vit.{VISION}", False),
    "a ViT by its base": ({"base_model_name_or_path": "google/vit-base-patch16-224"}, VISION, False),
    "a DeiT by its class": (
        {"auto_mapping": {"base_model_class": "DeiTForImageClassification"}},
        VISION,
        False,
    ),
    "a VideoMAE, which is not renamed": ({"base_model_name_or_path": "MCG-NJU/videomae-base"}, VISION, True),
    "some model": ({}, VISION, None),
    "a ViT of transformers 5": ({}, "vit.layers.0.attention.q_proj", True),
    "a BERT": ({}, "bert.encoder.layer.0.attention.self.query", True),
}


# A kind from the wild: B2, paths before a rename.
@pytest.mark.parametrize("consumer", PEFTS)
@pytest.mark.parametrize("name", RENAMED)
def test_names_before_transformers_5_are_not_found(name, consumer, tmp_path):
    changes, path, loads = RENAMED[name]
    assert answer(llama(tmp_path / "a", shapes={path: (6, 5)}, **changes), consumer) is loads


@pytest.mark.parametrize("consumer", ["vllm", "llama.cpp"])
def test_a_model_that_is_not_known_cannot_be_told(consumer, tmp_path):
    source = folder(tmp_path / "a", target_modules=["q", "v"])
    assert answer(source, consumer) is None
    assert answer(source, "peft") is True
    (finding,) = lm.check(source, consumer)
    assert "a model that is not known" in finding.sentence


NAMES = {  # class -> a base of it, and what vLLM, SGLang and llama.cpp make of its adapters
    "LlamaForCausalLM": ("meta-llama/Llama-3.2-1B", True, True, True),
    "Qwen2ForCausalLM": ("Qwen/Qwen2.5-Coder-7B-Instruct", True, True, True),
    "MistralForCausalLM": ("mistralai/Mistral-7B-v0.1", True, True, True),
    "GPT2LMHeadModel": ("openai-community/gpt2-medium", False, None, True),
    "BloomForCausalLM": ("bigscience/bloom-560m", False, None, True),
    "FalconForCausalLM": ("tiiuae/falcon-7b", False, None, None),
    "LlamaForSequenceClassification": ("tiiuae/Falcon3-7B-Base", True, True, True),
    "GPTJForCausalLM": ("EleutherAI/gpt-j-6b", False, None, False),
    "GPTNeoXForCausalLM": ("EleutherAI/pythia-70m", None, None, True),
    "OPTForCausalLM": ("facebook/opt-350m", True, None, False),
    "MPTForCausalLM": ("mosaicml/mpt-7b", False, None, None),
    "FalconMambaForCausalLM": ("tiiuae/falcon-mamba-7b", False, None, None),
    "StableLmForCausalLM": ("stabilityai/stablelm-3b-4e1t", False, True, True),
    "OrionForCausalLM": ("OrionStarAI/Orion-14B-Base", False, True, None),
    "OlmoeForCausalLM": ("allenai/OLMoE-1B-7B-0924", None, None, True),
    "FlexOlmoForCausalLM": ("allenai/FlexOlmo-7x7B-1T", None, None, False),
    "Gemma3nForConditionalGeneration": ("google/gemma-3n-E2B-it", False, None, None),
    "Zamba2ForCausalLM": ("Zyphra/Zamba2-7B-instruct", False, None, False),
    "GlmForCausalLM": ("zai-org/glm-4-9b-chat-hf", True, None, True),
    "Qwen2VLForConditionalGeneration": ("Qwen/Qwen2-VL-7B-Instruct", True, None, None),
    "Qwen2AudioForConditionalGeneration": ("Qwen/Qwen2-Audio-7B", False, None, None),
    "ModernBertForSequenceClassification": ("", False, None, None),
    "RobertaForSequenceClassification": ("", True, None, None),
    "NovelForCausalLM": ("", None, None, None),
}  # fmt: skip
SERVERS = ("vllm", "sglang", "llama.cpp")


# A kind from the wild: B2, models without support.
@pytest.mark.parametrize("told", ["base", "cache", "auto_mapping", "config.json"])
@pytest.mark.parametrize("name", NAMES)
def test_the_class_of_the_model_decides_whoever_tells_it(name, told, tmp_path):
    base, *wanted = NAMES[name]
    if not base and told in ("base", "cache"):
        return
    cached = f"/cache/models--{base.replace('/', '--')}/snapshots/0123abcd"
    said = {"base": {"base_model_name_or_path": base},
            "cache": {"base_model_name_or_path": cached},
            "auto_mapping": {"auto_mapping": {"base_model_class": name}}}  # fmt: skip
    shapes = {"layers.0.q_proj": (6, 5), "layers.0.v_proj": (4, 5)}  # which SGLang can stack
    source = llama(tmp_path / "a", shapes=shapes, **said.get(told, {}))
    if told == "config.json":
        (source / "config.json").write_text(json.dumps({"architectures": [name]}))
    for consumer, loads in zip(SERVERS, wanted, strict=True):
        (finding,) = lm.check(source, consumer) or [None]
        assert (None if finding and finding.effect == "unknown" else finding is None) is loads, consumer
        if loads is False:
            assert "no place for adapters of " in finding.sentence
            assert not finding.command


def test_a_model_of_which_only_the_newest_version_loads_adapters_is_told_with_that_version(tmp_path):
    (finding,) = lm.check(llama(tmp_path / "a", base_model_name_or_path="allenai/OLMoE-1B-7B-0924"), "vllm")
    assert "vLLM 0.33.0 has a place for its adapters, and earlier versions have none" in finding.sentence


@pytest.mark.parametrize("consumer", SERVERS)
@pytest.mark.parametrize("base", ["me/private", "/data/sft/checkpoint-100", None, "me/llava-llama-3-8b"])
def test_names_that_many_models_share_do_not_tell_the_model(base, consumer, tmp_path):
    assert answer(llama(tmp_path / "a", base_model_name_or_path=base), consumer) is None


SHARED = {
    "transformer.h.0.attn.c_attn": {"vllm": None},  # of GPT-2 and of GPT-BigCode
    "transformer.h.0.attn.q_proj": {"vllm": False, "llama.cpp": False},
    "transformer.h.0.self_attention.query_key_value": {"vllm": False, "llama.cpp": None},
    "transformer.encoder.layers.0.self_attention.query_key_value": {"vllm": True},
    "model.layers.0.attention.wqkv": {"vllm": True},
}


@pytest.mark.parametrize("path", SHARED)
def test_names_that_few_models_share_tell_what_all_of_these_have_in_common(path, tmp_path):
    source = llama(tmp_path / "a", shapes={path: (6, 5)})
    assert {consumer: answer(source, consumer) for consumer in SHARED[path]} == SHARED[path]


TOKENS = {"meta-llama/Llama-3.1-8B": True, "Qwen/Qwen2.5-7B": False, "Qwen/Qwen3-8B": True,
          "mistralai/Mistral-7B-v0.1": False, "google/gemma-2-9b": False,
          "allenai/OLMo-2-1124-7B": False}  # fmt: skip


@pytest.mark.parametrize("base", TOKENS)
def test_whether_vllm_adapts_a_head_depends_on_the_model(base, tmp_path):
    source = llama(tmp_path / "a", shapes=LLAMA | {"lm_head": (9, 5)}, base_model_name_or_path=base)
    assert answer(source, "vllm") is TOKENS[base]
    assert answer(source, "llama.cpp") is None  # which stops if the head is tied


def test_sglang_knows_the_sizes_of_some_layers_only(tmp_path):
    base = "mistralai/Mixtral-8x7B-v0.1"
    source = llama(
        tmp_path / "a", shapes={"model.layers.0.block_sparse_moe.gate": (8, 5)}, base_model_name_or_path=base
    )
    (finding,) = lm.check(source, "sglang")
    assert "no size for layers called model.layers.0.block_sparse_moe.gate" in finding.sentence


def test_a_class_that_is_not_known_is_not_taken_for_another_by_its_modules(tmp_path):
    source = llama(tmp_path / "a", auto_mapping={"base_model_class": "NovelForCausalLM"})
    assert answer(source, "vllm") is None


# A kind from the wild: B2, GPT-2 in llama.cpp.
@pytest.mark.parametrize(
    "said",
    [
        {"base_model_name_or_path": "gpt2"},
        {"auto_mapping": {"base_model_class": "GPT2Model"}},
        {"auto_mapping": {"base_model_class": "GPT2ForSequenceClassification"}},
    ],
)
def test_conv1d_of_gpt2_is_written_turned_for_llama_cpp(said, tmp_path):
    shapes = {"transformer.h.0.attn.c_proj": (6, 6)}
    source = llama(tmp_path / "a", shapes=shapes, fan_in_fan_out=True, **said)
    (finding,) = lm.check(source, "llama.cpp")
    assert "out transposed (transformer.h.0.attn.c_proj)" in finding.sentence
    assert finding.command
    lm.combine([source], "linear", consumer="llama.cpp", out=tmp_path / "m")
    assert lm.check(tmp_path / "m", "llama.cpp") == []


# A kind from the wild: B2, two models of the same names, of which one has Conv1D layers.
def test_names_that_a_model_without_conv1d_has_too_do_not_tell_what_the_converter_turns(tmp_path):
    shapes = {"transformer.h.0.attn.c_proj": (6, 6)}
    unsaid = llama(tmp_path / "a", shapes=shapes, base_model_name_or_path=None)
    (finding,) = lm.check(unsaid, "llama.cpp")
    assert finding.effect == "unknown"
    assert "GPT2LMHeadModel or GPTBigCodeForCausalLM" in finding.sentence
    told = llama(tmp_path / "b", shapes=shapes, base_model_name_or_path=None, fan_in_fan_out=True)
    assert lm.check(told, "llama.cpp")[0].effect == "rejects"  # PEFT says so of a Conv1D


# A kind from the wild: B2, bias without tensors.
def test_a_setting_about_biases_matters_where_there_are_some(tmp_path):
    base = {"base_model_name_or_path": "meta-llama/Llama-2-7b-hf"}
    assert answer(llama(tmp_path / "a", bias="lora_only", **base), "sglang") is True
    more = {f"{Q}.base_layer.bias": np.ones(6, "f4")}
    assert answer(llama(tmp_path / "b", more, bias="lora_only", **base), "sglang") is False


def test_the_command_line_tells_the_three_answers_apart(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli, _ = Cli(capsys), folder(tmp_path / "open", target_modules=["q", "v"])
    llama(tmp_path / "good", base_model_name_or_path="Qwen/Qwen3-4B")
    assert cli("check", "good", "--for", "vllm").code == 0
    assert cli("check", "open", "good", "--for", "vllm").code == 5
    assert "vLLM may or may not load it as it is meant" in cli.out
    assert cli("check", "open", "--for", "vllm", "--for", "mlx").code == 3
    (found,) = cli("check", "open", "--for", "vllm", "--json").json()["adapters"]
    assert found["consumers"][0]["loads"] is None


# A kind from the wild: B2, refusals as mends.
def test_a_refusal_is_no_mend(tmp_path, capsys):
    cli = Cli(capsys)
    cli("check", llama(tmp_path / "a", UNREAD["I8 factors"], bias="all"), "--for", "vllm")
    assert "loramerge cannot rewrite it" in cli.out
    assert "mend: loramerge cannot" not in cli.out


def test_combine_writes_what_cannot_be_told_only_if_allowed(tmp_path):
    source = folder(tmp_path / "a", target_modules=["q", "v"])
    with pytest.raises(lm.IncompatibleError, match="allow_unknown=True"):
        lm.combine([source], consumer="vllm", out=tmp_path / "m")
    assert not (tmp_path / "m").exists()
    merge = lm.combine([source], consumer="vllm", allow_unknown=True, out=tmp_path / "m")
    assert any("may or may not load it" in note for note in merge.report.notes)
