"""What transformers computes with a fused model is what PEFT computes, merged and with the adapter."""

import json

import pytest

import loramerge as lm
from tests.helpers import tiny_models
from tests.helpers.files import Cli
from tests.helpers.tiny_models import (
    QUIET,
    base,
    distance,
    llama,
    logits,
    new_adapter,
    peft,
    torch,
    transformers,
)

pytestmark = [
    *QUIET,
    tiny_models.FLIPPED,
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
    # PEFT 0.21 translates the experts of an adapter and then does not find the keys that it made itself.
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:The following alpha_pattern keys:RuntimeWarning"),
]
SIZE = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


def tied():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZE, tie_word_embeddings=True))


def qwen_moe():
    more = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**SIZE, **more))


def mixtral():
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZE, num_local_experts=4))


def bert():
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = transformers.BertConfig(**{name: SIZE[name] for name in names}, num_labels=3)
    return transformers.BertForSequenceClassification(config)


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
CASES = {  # name -> (model, config of the adapter, whether PEFT's merge is what the adapter computes)
    "llama": (llama, {"target_modules": "all-linear"}, True),
    "llama, rslora": (llama, {"target_modules": ["q_proj"], "use_rslora": True}, True),
    "llama, head": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, True),
    "gpt2": (tiny_models.gpt2, {"target_modules": ["c_attn", "c_proj"]}, True),
    "tied": (tied, {"target_modules": ["q_proj", "v_proj"]}, True),
    "tied, tokens": (tied, {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]}, True),
    "tied, embedding saved": (
        tied,
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        True,
    ),
    "tied, head": (tied, {"target_modules": ["lm_head"]}, False),  # PEFT's merge changes the embedding too
    "tied, embedding": (tied, {"target_modules": ["embed_tokens"]}, False),
    "qwen3 moe": (qwen_moe, {"target_modules": ["q_proj"], "target_parameters": EXPERTS}, True),
    "mixtral": (mixtral, {"target_modules": [], "target_parameters": EXPERTS}, True),
    "bert": (bert, {"target_modules": ["query", "dense"], "task_type": "SEQ_CLS"}, True),
    "bert, biases": (bert, {"target_modules": ["query"], "bias": "lora_only", "task_type": "SEQ_CLS"}, True),
    "bert, lora_bias": (bert, {"target_modules": ["query"], "lora_bias": True, "task_type": "SEQ_CLS"}, True),
}


def shaken(model, config):
    """The adapter with all that it trains changed."""
    for name, parameter in model.named_parameters():
        biased = "lora_B.default.bias" in name or (
            config.get("bias") and name.endswith("query.base_layer.bias")
        )
        if biased or "trainable_tokens" in name or "modules_to_save" in name:
            parameter.data = parameter.data + 0.3
    return model


def prepared(tmp_path, name):
    """The base and an adapter on the disk; the model with the adapter."""
    make, config, _ = CASES[name]
    base(make).save_pretrained(tmp_path / "base", max_shard_size="20kB")
    model = shaken(new_adapter(make, 1, {"r": 4, **config}), config)
    model.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    return model


def reopened(folder):
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, kind).from_pretrained(folder).eval()


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_adapter_and_of_the_merge_of_peft(tmp_path, name):
    model = prepared(tmp_path, name)
    wanted = logits(model)
    lm.fuse(tmp_path / "a", tmp_path / "base", tmp_path / "f")
    found = logits(reopened(tmp_path / "f"))
    assert distance(found, wanted) < 1e-5
    assert distance(logits(reopened(tmp_path / "base")), wanted) > 1e-2, "the adapter changes something"
    if CASES[name][2]:
        assert distance(found, logits(model.merge_and_unload())) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "qwen3 moe"])
def test_peft_loads_what_is_extracted_from_a_merge_and_computes_the_same(tmp_path, name):
    model = prepared(tmp_path, name)
    wanted = logits(model)
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "tuned")
    done = lm.extract(tmp_path / "tuned", tmp_path / "base", tmp_path / "e", rank=4, extras="first")
    again = peft.PeftModel.from_pretrained(reopened(tmp_path / "base"), tmp_path / "e").eval()
    assert distance(logits(again), wanted) < 1e-5
    assert done.energy_lost < 1e-10


def test_norms_and_biases_that_are_kept_are_loaded_by_peft(tmp_path):
    model = base(tiny_models.gpt2)
    model.save_pretrained(tmp_path / "base")
    randomness = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "wpe" not in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=randomness)
    model.save_pretrained(tmp_path / "tuned")
    lm.extract(tmp_path / "tuned", tmp_path / "base", tmp_path / "e", rank=32, extras="first")
    again = peft.PeftModel.from_pretrained(base(tiny_models.gpt2), tmp_path / "e").eval()
    assert distance(logits(again), logits(model)) < 1e-4
    lm.fuse(tmp_path / "e", tmp_path / "base", tmp_path / "f")
    assert distance(logits(reopened(tmp_path / "f")), logits(model)) < 1e-4


def t5():
    sizes = {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 1,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    }
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=32, **sizes))


def neox():
    sizes = {name: size for name, size in SIZE.items() if name != "num_key_value_heads"}
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**sizes))


@pytest.mark.parametrize("make", [t5, neox])
def test_whole_models_come_back_from_adapters_that_keep_what_is_no_matrix(tmp_path, make):
    """An embedding that encoder, decoder and head share; a head that files call otherwise than the model."""

    def seen(model):
        given = torch.arange(8)[None]
        with torch.no_grad():
            return model(given, **({"decoder_input_ids": given} if make is t5 else {})).logits

    base(make).save_pretrained(tmp_path / "base")
    model, randomness = base(make), torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=randomness)
    model.save_pretrained(tmp_path / "tuned")
    lm.extract(tmp_path / "tuned", tmp_path / "base", tmp_path / "e", rank=32, extras="first")
    again = peft.PeftModel.from_pretrained(reopened(tmp_path / "base"), tmp_path / "e").eval()
    assert distance(seen(again), seen(model)) < 1e-4
    assert distance(seen(reopened(tmp_path / "base")), seen(model)) > 1e-2
    lm.fuse(tmp_path / "e", tmp_path / "base", tmp_path / "f")
    assert distance(seen(reopened(tmp_path / "f")), seen(model)) < 1e-4


def test_peft_loads_what_is_extracted_from_gpt2_as_it_is_on_the_hub(tmp_path):
    """Names without `transformer.`, and the class with a head in the config."""
    model = base(tiny_models.gpt2)
    config = {**model.config.to_dict(), "architectures": ["GPT2LMHeadModel"]}
    for name in ("base", "tuned"):
        if name == "tuned":
            weight = model.transformer.h[0].attn.c_attn.weight
            weight.data += 0.1 * torch.outer(*(torch.arange(n) % 3 - 1.0 for n in weight.shape))
        model.transformer.save_pretrained(tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    lm.extract(tmp_path / "tuned", tmp_path / "base", tmp_path / "e", rank=1)
    again = peft.PeftModel.from_pretrained(reopened(tmp_path / "base"), tmp_path / "e").eval()
    assert distance(logits(again), logits(model)) < 1e-5
    assert distance(logits(reopened(tmp_path / "base")), logits(model)) > 1e-3


def test_gpt2_that_is_written_for_llama_cpp_is_fused_as_it_was(tmp_path, capsys):
    """PEFT's own model is the oracle: the factors are exchanged in the file, and read back."""
    model = prepared(tmp_path, "gpt2")
    wanted = logits(model)
    (finding,) = lm.check(tmp_path / "a", "llama.cpp")
    assert finding.effect == "rejects"
    assert Cli(capsys)("combine", tmp_path / "a", "--for", "llama.cpp", "-o", tmp_path / "m").code == 0
    assert Cli(capsys)("fuse", tmp_path / "m", tmp_path / "base", "-o", tmp_path / "fm").code == 0
    assert distance(logits(reopened(tmp_path / "fm")), wanted) < 1e-5
    assert Cli(capsys)("fuse", tmp_path / "a", tmp_path / "base", "-o", tmp_path / "f").code == 0
    assert distance(logits(reopened(tmp_path / "f")), wanted) < 1e-5
