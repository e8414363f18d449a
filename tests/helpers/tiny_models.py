"""Tiny random base models, and adapters on them as PEFT makes, saves and runs them. No network."""

import json
from contextlib import contextmanager

import pytest

REASON = "PEFT is the oracle here: it comes with the extra `test`"
torch = pytest.importorskip("torch", reason=REASON)
peft = pytest.importorskip("peft", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)
load_file = pytest.importorskip("safetensors.torch", reason=REASON).load_file
LoraLayer = pytest.importorskip("peft.tuners.lora", reason=REASON).LoraLayer

torch.set_num_threads(1)
QUIET = [
    # PEFT 0.21 asks every model for an attribute that transformers 5 gives up.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]
# GPT-2 adapters in the wild often say fan_in_fan_out: false; PEFT looks at the layer and says this.
FLIPPED = pytest.mark.filterwarnings(
    "ignore:fan_in_fan_out is set to False but the target module is `Conv1D`"
)

TOKENS = torch.arange(24).reshape(2, 12) * 7 % 32


def llama():
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    return transformers.LlamaForCausalLM(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=32,
        n_positions=32,
        n_embd=32,
        n_head=4,
        n_layer=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.GPT2LMHeadModel(config)


def base(make, dtype=torch.float32):
    """The same random model at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval().to(dtype)


def new_adapter(make, seed, config, dtype=torch.float32):
    """A PEFT model whose one adapter has random factors, neither of them zero."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    model = peft.get_peft_model(base(make, wide), peft.LoraConfig(**config)).eval()
    randomness = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = (0.3 * torch.randn(parameter.shape, generator=randomness)).to(dtype)
    return model


def save_adapter(folder, make, seed, config, dtype=torch.float32, **patch):
    """Such an adapter as PEFT saves it; `patch` then overwrites fields of its config file."""
    new_adapter(make, seed, config, dtype).save_pretrained(folder, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | patch))
    return folder


def load_adapters(make, folders, dtype=torch.float32):
    """The base with these adapters loaded by PEFT, called by their place, all active at once."""
    names = [str(i) for i in range(len(folders))]
    model = peft.PeftModel.from_pretrained(base(make, dtype), folders[0], adapter_name="0")
    for name, folder in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(folder, adapter_name=name)
    model.base_model.set_adapter(names)
    return model.eval()


@contextmanager
def noting():
    """What PEFT finds when it loads an adapter, for each that it loads: the keys it misses, or cannot use."""
    found, load = [], peft.PeftModel.load_adapter

    def noted(*args, **options):
        found.append(load(*args, **options))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peft.PeftModel, "load_adapter", noted)
        yield found


def with_state(make, config, state):
    """The base with one adapter of this config that holds exactly these tensors."""
    model = peft.get_peft_model(base(make), peft.LoraConfig(**config))
    result = peft.set_peft_model_state_dict(model, state)
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "lora_" in key]
    return model.eval()


def deltas(model, name):
    """Module path -> ΔW (out, in) of an adapter, as PEFT computes it, in float64."""
    found = {}
    for path, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer) and name in layer.lora_A:
            delta = layer.get_delta_weight(name).detach().double()
            found[path] = (delta.T if layer.fan_in_fan_out else delta).numpy()
    return found


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS).logits.double()


@torch.no_grad()
def logits_by_hand(model, weights):
    """The logits of base weights + Σ w ΔW, where PEFT gives ΔW and the sum is ours."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for name, weight in enumerate(weights):
                if str(name) in layer.lora_A:
                    layer.base_layer.weight += weight * layer.get_delta_weight(str(name))
    with model.disable_adapter():
        return logits(model)


def distance(found, expected):
    """The largest difference, relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())
