"""The third answer of `check`: nobody can tell from these files whether a program loads them so."""

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.consumers.models import FAMILIES, PLAIN, SERVED, UNSERVED
from tests.helpers.files import Cli, bare, folder, key, tensors

P = "base_model.model."
LLAMA = {"model.layers.0.self_attn.q_proj": (6, 5), "model.layers.0.self_attn.v_proj": (4, 5)}
PEFTS = ["peft", "transformers"]
Q = f"{P}model.layers.0.self_attn.q_proj"


def llama(path, more=None, shapes=LLAMA, **changes):
    names = sorted({name.rpartition(".")[2] for name in shapes})
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
              "bigscience/bloomz-7b1": False}  # fmt: skip


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
    assert answer(llama(tmp_path / "b"), consumer) is True


NAMES = {
    "gpt2": ("openai-community/gpt2-medium", "GPT2LMHeadModel"),
    "bloom": ("bigscience/bloom-560m", "BloomForCausalLM"),
    "falcon": ("tiiuae/falcon-7b", "FalconForCausalLM"),
    "gptj": ("EleutherAI/gpt-j-6b", "GPTJForCausalLM"),
    "gpt_neox": ("EleutherAI/pythia-70m", "GPTNeoXForCausalLM"),
    "opt": ("facebook/opt-350m", "OPTForCausalLM"),
    "mpt": ("mosaicml/mpt-7b", "MptForCausalLM"),
    PLAIN: ("meta-llama/Llama-3.2-1B", "LlamaForCausalLM"),
}
NAMES |= {
    "falcon_mamba": ("tiiuae/falcon-mamba-7b", "FalconMambaForCausalLM"),
    "stablelm": ("stabilityai/stablelm-3b-4e1t", "StableLmForCausalLM"),
    "orion": ("OrionStarAI/Orion-14B-Base", "OrionForCausalLM"),
    "olmoe": ("allenai/OLMoE-1B-7B-0924", "OlmoeForCausalLM"),
    "flex_olmo": ("allenai/FlexOlmo-7x7B-1T", "FlexOlmoForCausalLM"),
    "gemma3n": ("google/gemma-3n-E2B-it", "Gemma3nForCausalLM"),
    "dbrx": ("databricks/dbrx-base", "DbrxForCausalLM"),
    "arctic": ("Snowflake/snowflake-arctic-base", "ArcticForCausalLM"),
    "mamba": ("state-spaces/mamba-130m-hf", "MambaForCausalLM"),
    "kimi_linear": ("moonshotai/Kimi-Linear-48B-A3B-Base", "KimiLinearForCausalLM"),
    "exaone_moe": ("LGAI-EXAONE/K-EXAONE-236B-A23B", "ExaoneMoeForCausalLM"),
    "jais2": ("inceptionai/Jais-2-8B-Chat", "Jais2ForCausalLM"),
    "mimo_v2": ("XiaomiMiMo/MiMo-V2-Flash", "MiMoV2FlashForCausalLM"),
    "zamba2": ("Zyphra/Zamba2-7B-instruct", "Zamba2ForCausalLM"),
    "step3": ("stepfun-ai/Step-3.5-Flash", "Step3p5ForCausalLM"),
    "deepseek_v4": ("deepseek-ai/DeepSeek-V4-Flash", "DeepseekV4ForCausalLM"),
    "minimax_m3": ("MiniMaxAI/MiniMax-M3", "MiniMaxM3SparseForCausalLM"),
    SERVED: ("zai-org/glm-4-9b-chat-hf", "GlmForCausalLM"),
}
CANNOT = {"vllm": UNSERVED, "llama.cpp": {"opt", "gptj"}, "sglang": set()}
LOADS = {"vllm": {PLAIN, SERVED, "opt"}, "llama.cpp": {PLAIN, "gpt2"}, "sglang": {PLAIN}}


@pytest.mark.parametrize("told", ["base", "auto_mapping", "config.json"])
@pytest.mark.parametrize("consumer", CANNOT)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_a_program_has_no_place_for_is_never_said_to_load(family, consumer, told, tmp_path):
    base, architecture = NAMES[family]
    said = {"base": {"base_model_name_or_path": base},
            "auto_mapping": {"auto_mapping": {"base_model_class": architecture}}}  # fmt: skip
    shapes = {"layers.0.q_proj": (6, 5), "layers.0.v_proj": (4, 5)}  # which SGLang can stack
    source = llama(tmp_path / "a", shapes=shapes, **said.get(told, {}))
    if told == "config.json":
        (source / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    if family in CANNOT[consumer]:
        (finding,) = lm.check(source, consumer)
        assert finding.effect == "rejects"
        assert FAMILIES[family].title in finding.sentence
        assert not finding.command
    else:
        assert answer(source, consumer) is (True if family in LOADS[consumer] else None)


def test_a_class_that_is_not_known_is_not_taken_for_another_by_its_modules(tmp_path):
    source = llama(tmp_path / "a", auto_mapping={"base_model_class": "NovelForCausalLM"})
    assert answer(source, "vllm") is None


def test_conv1d_of_gpt2_is_no_adapter_for_llama_cpp(tmp_path):
    source = llama(tmp_path / "a", shapes={"transformer.h.0.attn.c_proj": (6, 6)}, fan_in_fan_out=True)
    (finding,) = lm.check(source, "llama.cpp")
    assert "does not transpose the Conv1D layers of GPT-2 (transformer.h.0.attn.c_proj)" in finding.sentence


def test_a_setting_about_biases_matters_where_there_are_some(tmp_path):
    assert answer(llama(tmp_path / "a", bias="lora_only"), "sglang") is True
    more = {f"{Q}.base_layer.bias": np.ones(6, "f4")}
    assert answer(llama(tmp_path / "b", more, bias="lora_only"), "sglang") is False


def test_the_command_line_tells_the_three_answers_apart(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli, _ = Cli(capsys), folder(tmp_path / "open", target_modules=["q", "v"])
    llama(tmp_path / "good")
    assert cli("check", "good", "--for", "vllm").code == 0
    assert cli("check", "open", "good", "--for", "vllm").code == 5
    assert "vLLM may or may not load it as it is meant" in cli.out
    assert cli("check", "open", "--for", "vllm", "--for", "mlx").code == 3
    (found,) = cli("check", "open", "--for", "vllm", "--json").json()["adapters"]
    assert found["consumers"][0]["loads"] is None


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
