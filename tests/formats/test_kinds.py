"""Every kind of layer that PEFT adapts: read as PEFT computes it, merged to what the adapters do together."""

from functools import cache

import numpy as np
import pytest

import loramerge
from tests.helpers import zoo
from tests.helpers.files import Cli, dense, folder, tensors
from tests.helpers.tiny_models import (
    QUIET,
    distance,
    llama,
    load_adapters,
    load_file,
    logits,
    noting,
    peft,
    save_adapter,
    torch,
    transformers,
)
from tests.helpers.tiny_models import base as model_of

save_file = pytest.importorskip("safetensors.torch").save_file
pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups:UserWarning"),
    # PEFT looks for the keys among modules, and then uses them for parameters all the same.
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"),
]
CONVS = {"r": 4, "lora_alpha": 6, "target_modules": ["line", "point", "square", "cube"]}
WORDS = {"r": 3, "lora_alpha": 5, "target_modules": ["emb", "lin"]}
BOTH = ["experts.gate_up_proj", "experts.down_proj"]
MOE = {"r": 2, "lora_alpha": 3, "target_modules": ["lin"], "target_parameters": BOTH}
GROUPED = {"r": 4, "lora_alpha": 6, "target_modules": ["grouped", "head"]}
KINDS = {
    "convolutions": (zoo.Convolutions, CONVS, CONVS | {"r": 2, "use_rslora": True}),
    "embeddings": (zoo.Words, WORDS, WORDS | {"r": 5, "rank_pattern": {"emb": 1}}),
    "fused experts": (zoo.Mixture, MOE, MOE | {"r": 3, "use_rslora": True}),
    "fused experts (in, out)": (zoo.transposed_mixture, MOE, MOE | {"r": 1}),
    "one parameter of them": (
        zoo.Mixture,
        MOE | {"target_parameters": BOTH[1:]},
        MOE | {"target_parameters": BOTH[1:], "target_modules": []},
    ),
    "ranks by a pattern of experts": (
        zoo.Mixture,
        MOE | {"rank_pattern": {r"layers\.1\.experts\.down_proj": 5}},
        MOE,
    ),
    "grouped convolutions": (zoo.Grouped, GROUPED, GROUPED | {"r": 2}),
}


@pytest.fixture
def cli(capsys):
    return Cli(capsys)


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def pair(request, tmp_path_factory):
    make, *configs = request.param
    folder = tmp_path_factory.mktemp("pair")
    sources = [zoo.save(folder / str(i), make, i, config) for i, config in enumerate(configs)]
    return make, sources


def as_peft_stores(adapter):
    """(module path, parameter) -> ΔW in the layout of the base's own parameter."""
    found, experts = {}, {}
    for target, update in adapter.items():
        delta = update.dense()
        if target.kind == "embedding":
            delta = delta.T
        elif target.kind == "conv":
            delta = delta.reshape(len(delta), -1, *target.layout.kernel)
        if target.index < 0:
            found[target.path, target.parameter] = delta
        else:
            experts.setdefault((target.path, target.parameter), {})[target.index] = delta
    return found | {key: np.stack([each[i] for i in range(len(each))]) for key, each in experts.items()}


def as_peft_computes(model):
    found = {}
    for path, layer in model.base_model.model.named_modules():
        if hasattr(layer, "get_delta_weight") and "0" in layer.r:
            parameter = getattr(layer, "parameter_name", "weight")
            delta = layer.get_delta_weight("0").detach().numpy()
            swapped = getattr(layer.get_base_layer(), "is_transposed", False)
            found[path.replace(".base_layer", ""), parameter] = delta.swapaxes(1, 2) if swapped else delta
    return found


def check_groups(sources):
    for source in sources:
        layer = zoo.load(zoo.Grouped, [source]).base_model.model.grouped
        x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
        expected = layer.scaling["0"] * layer.lora_B["0"](layer.lora_A["0"](x))
        adapter = loramerge.load(source)
        groups = [adapter[target].dense() for target in sorted(adapter) if target.path == "grouped"]
        weight = torch.from_numpy(np.concatenate(groups).reshape(6, 4, 3, 3))
        np.testing.assert_allclose(torch.conv2d(x, weight), expected.detach(), rtol=1e-12, atol=1e-12)


def test_every_update_is_the_one_that_peft_computes(pair):
    make, sources = pair
    if make is zoo.Grouped:  # PEFT has no ΔW of a grouped convolution: its layers say what they do
        return check_groups(sources)
    for source in sources:
        expected = as_peft_computes(zoo.load(make, [source]))
        found = as_peft_stores(loramerge.load(source))
        assert found.keys() == expected.keys()
        for place, delta in found.items():
            np.testing.assert_allclose(delta, expected[place], rtol=1e-12, atol=1e-12)
    return None


@cache
def together(make, sources):
    """What a model gives under adapters that are all active."""
    return zoo.output(zoo.load(make, sources))


@pytest.mark.parametrize("method", ["linear", "svd", "lego"])
def test_the_merged_folder_does_what_both_do(pair, method, tmp_path):
    make, sources = pair
    expected = together(make, tuple(sources))
    options = {} if method == "linear" else {"rank": 16}
    loramerge.combine(sources, method, out=tmp_path / "m", **options)
    with noting() as results:
        model = zoo.load(make, [tmp_path / "m"])
    (result,) = results
    assert not result.missing_keys
    assert not result.unexpected_keys
    np.testing.assert_allclose(zoo.output(model), expected, rtol=1e-9, atol=1e-9)
    assert np.abs(expected - zoo.output(zoo.base(make))).max() > 0.05, "the adapters matter"


def test_a_merged_file_and_a_state_dict_hold_the_same(pair, tmp_path):
    _, sources = pair
    merged = loramerge.combine(sources, "linear", out=tmp_path / "m").adapter
    one = loramerge.combine(sources, "linear", out=tmp_path / "m.safetensors").adapter
    state = loramerge.from_state_dict(loramerge.to_state_dict(merged), merged.config)
    assert set(merged) == set(one) == set(state)
    for target, update in merged.items():
        np.testing.assert_array_equal(update.dense(), one[target].dense())
        np.testing.assert_array_equal(update.dense(), state[target].dense())


def test_one_adapter_saved_again_is_the_same_adapter(pair, tmp_path):
    _, (source, _) = pair
    loramerge.save(loramerge.load(source), tmp_path / "again")
    before, after = loramerge.load(source), loramerge.load(tmp_path / "again")
    assert set(before) == set(after)
    for target, update in before.items():
        np.testing.assert_allclose(after[target].dense(), update.dense(), rtol=1e-12, atol=1e-14)


def mixtral():
    config = transformers.MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=32,
    )
    return transformers.MixtralForCausalLM(config)


MODELS = {
    "a mixture of experts": (mixtral, {"target_modules": ["q_proj"], "target_parameters": BOTH}),
    "experts alone": (mixtral, {"target_modules": [], "target_parameters": BOTH[:1]}),
    "embeddings and attention": (llama, {"target_modules": ["embed_tokens", "v_proj"]}),
    "the head": (llama, {"target_modules": ["lm_head"]}),
}


@pytest.mark.parametrize(("make", "config"), MODELS.values(), ids=MODELS)
def test_whole_models_give_the_logits_of_both(make, config, tmp_path):
    configs = [{"r": 2, "lora_alpha": 3, **config}, {"r": 5, "lora_alpha": 4, "use_rslora": True, **config}]
    sources = [save_adapter(tmp_path / str(i), make, i, each) for i, each in enumerate(configs)]
    both = logits(load_adapters(make, sources))
    loramerge.combine(sources, "svd", rank=7, out=tmp_path / "m")
    assert distance(logits(load_adapters(make, [tmp_path / "m"])), both) < 1e-5
    assert distance(both, logits(model_of(make))) > 0.05, "the adapters matter"


def test_two_sources_that_adapt_other_parameters_of_the_experts(tmp_path):
    """PEFT loads no two such adapters side by side; their merge it loads."""
    a = zoo.save(tmp_path / "a", zoo.Mixture, 1, MOE | {"target_parameters": BOTH[:1]})
    b = zoo.save(tmp_path / "b", zoo.Mixture, 2, MOE | {"target_parameters": BOTH[1:]})
    loramerge.combine([a, b], "cat", out=tmp_path / "m")
    found = as_peft_computes(zoo.load(zoo.Mixture, [tmp_path / "m"]))
    for source, parameter in ((a, "gate_up_proj"), (b, "down_proj")):
        expected = as_peft_computes(zoo.load(zoo.Mixture, [source]))
        for layer in range(2):
            key = f"layers.{layer}.experts", parameter
            np.testing.assert_allclose(found[key], expected[key], rtol=1e-9, atol=1e-12)


def test_some_of_the_parameters_are_chosen_by_name(tmp_path):
    source = zoo.save(tmp_path / "a", zoo.Mixture, 1, MOE)
    loramerge.combine([source], only=r"1.*down_proj", out=tmp_path / "m")
    before, after = (loramerge.load(tmp_path / name) for name in ("a", "m"))
    assert [str(t) for t in after] == [f"layers.1.experts.down_proj[{i}]" for i in range(3)]
    for target, update in after.items():
        np.testing.assert_allclose(update.dense(), before[target].dense(), rtol=1e-9, atol=1e-12)


def test_adalora_is_read_as_peft_computes_it_and_merged_to_plain_lora(tmp_path):
    config = {"init_r": 5, "target_r": 3, "lora_alpha": 7, "total_step": 10, "target_modules": ["lin"]}
    a = zoo.save(tmp_path / "a", zoo.Words, 1, config, of=peft.AdaLoraConfig)
    b = zoo.save(tmp_path / "b", zoo.Words, 2, WORDS)
    (key, expected), *_ = as_peft_computes(zoo.load(zoo.Words, [a])).items()
    np.testing.assert_allclose(as_peft_stores(loramerge.load(a))[key], expected, rtol=1e-6)
    loramerge.combine([a, b], "linear", out=tmp_path / "m")
    other = as_peft_computes(zoo.load(zoo.Words, [b]))[key]
    found = as_peft_computes(zoo.load(zoo.Words, [tmp_path / "m"]))[key]
    np.testing.assert_allclose(found, expected + other, rtol=1e-5)


def test_adalora_that_was_pruned(tmp_path):
    """PEFT saves what the masks leave, and still divides by the first rank."""
    config = {"init_r": 4, "lora_alpha": 7, "total_step": 10, "target_modules": ["lin"]}
    model = peft.get_peft_model(zoo.base(zoo.Words), peft.AdaLoraConfig(**config))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    model.peft_config["default"].rank_pattern = {"lin.lora_E": [True, False, True, False]}
    model.save_pretrained(tmp_path / "a")
    (expected,) = as_peft_computes(zoo.load(zoo.Words, [tmp_path / "a"])).values()
    adapter = loramerge.load(tmp_path / "a")
    assert adapter.rank == 2
    (found,) = as_peft_stores(adapter).values()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


class MergedLinear(torch.nn.Module):
    """The forward of PEFT 0.1 and 0.2 (after loralib), written from its definition."""

    def __init__(self, enable, r, alpha, outs, ins):
        super().__init__()
        self.enable, self.outs, self.scaling = enable, outs, alpha / r
        self.lora_A = torch.nn.Linear(ins, r * sum(enable), bias=False)
        kept = outs // len(enable) * sum(enable)
        self.lora_B = torch.nn.Conv1d(r * sum(enable), kept, 1, groups=sum(enable), bias=False)

    def forward(self, x):  # (batch, sequence, in)
        after = self.lora_B(self.lora_A(x).transpose(-2, -1)).transpose(-2, -1)
        whole = x.new_zeros((*x.shape[:-1], self.outs))
        chosen = torch.tensor(self.enable).repeat_interleave(self.outs // len(self.enable))
        whole[..., chosen] = after
        return whole * self.scaling


@pytest.mark.parametrize("enable", [[True, False, True], [True], [False, True, False], [True] * 3], ids=str)
def test_peft_2_fused_layout(enable, tmp_path):
    layer = MergedLinear(enable, 2, 5, 12, 7).double()
    state = {
        f"base_model.model.h.0.query_key_value.{name}": value.detach().numpy()
        for name, value in layer.named_parameters()
    }
    config = {"r": 2, "lora_alpha": 5, "enable_lora": enable, "target_modules": ["query_key_value"]}
    source = folder(tmp_path / "a", state, {"peft_type": "LORA", **config})
    x = torch.randn(3, 4, 7, dtype=torch.float64)
    expected = layer(x).detach().numpy()
    for adapter in (loramerge.load(source), loramerge.combine([source], out=tmp_path / "m").adapter):
        ((target, update),) = adapter.items()
        assert str(target) == "h.0.query_key_value"
        np.testing.assert_allclose(x.numpy() @ update.dense().T, expected, rtol=1e-12, atol=1e-14)


def test_factors_in_8_bits_are_widened_exactly(tmp_path):
    values = {name: torch.from_numpy(value) for name, value in tensors().items()}
    for kind in (torch.float8_e4m3fn, torch.float8_e5m2):
        small = {name: value.to(kind) for name, value in values.items()}
        path = folder(tmp_path / str(kind).rpartition(".")[2])
        save_file(small, path / "adapter_model.safetensors", {"format": "pt"})
        adapter = loramerge.load(path)
        assert adapter.dtype == "BF16"
        expected = dense({name: value.double().numpy() for name, value in small.items()}, 2.0)
        for target, update in adapter.items():
            np.testing.assert_array_equal(update.dense(), expected[target.path])


REPLICATED = {"layer_replication": [[0, 2], [1, 2]]}


def test_replicated_layers_merge_with_equally_replicated_ones_only(cli, tmp_path):
    a, b = (folder(tmp_path / name, tensors(seed), **REPLICATED) for seed, name in enumerate("ab"))
    assert cli("combine", a, b, "-o", tmp_path / "m").code == 0
    assert loramerge.load(tmp_path / "m").config["layer_replication"] == [[0, 2], [1, 2]]
    cli("combine", a, folder(tmp_path / "c"), "-o", tmp_path / "n").refused(3, "layer_replication")


def test_layers_to_transform_are_what_the_file_holds(tmp_path):
    a = folder(tmp_path / "a", tensors(1), layers_to_transform=[0, 1], target_modules=["q", "v"])
    loramerge.combine([a], out=tmp_path / "m")
    assert loramerge.load(tmp_path / "m").config["layers_to_transform"] is None


def test_experts_one_by_one_become_rows_of_the_fused_ones(cli, tmp_path):
    fused = zoo.save(tmp_path / "a", zoo.Mixture, 1, MOE)
    apart = folder(tmp_path / "b", tensors(shapes={f"layers.0.experts.{i}.w1": (5, 4) for i in range(3)}))
    words = ("--method", "linear", "--allow-base-mismatch", "-o", tmp_path / "m")
    assert cli("combine", fused, apart, *words).code == 0
    merge, first, second = (loramerge.load(place) for place in (tmp_path / "m", fused, apart))
    assert set(merge) == set(first)
    for target in merge:
        wanted = first[target].dense()
        if (target.path, target.parameter) == ("layers.0.experts", "gate_up_proj"):
            wanted[:5] += second[loramerge.Target(f"{target.path}.{target.index}.w1")].dense()
        np.testing.assert_allclose(merge[target].dense(), wanted, atol=1e-6)


def test_a_live_model_hands_over_its_experts(tmp_path):
    model = zoo.load(zoo.Mixture, [zoo.save(tmp_path / "a", zoo.Mixture, 1, MOE)])
    state = peft.get_peft_model_state_dict(model, adapter_name="0", save_embedding_layers=False)
    live = loramerge.from_state_dict(state, model.peft_config["0"].to_dict())
    saved = loramerge.load(tmp_path / "a")
    assert set(live) == set(saved)
    for target, update in saved.items():
        np.testing.assert_array_equal(update.dense(), live[target].dense())


def test_an_embedding_saved_whole_beside_its_update(tmp_path):
    """PEFT saves a targeted embed_tokens together with its base weights, unless told otherwise."""
    source = save_adapter(tmp_path / "a", llama, 1, {"r": 2, "target_modules": ["embed_tokens"]})
    values = load_file(source / "adapter_model.safetensors")
    whole = "base_model.model.model.embed_tokens.base_layer.weight"
    save_file(values | {whole: torch.ones(32, 32)}, source / "adapter_model.safetensors", {"format": "pt"})
    expected = logits(load_adapters(llama, [source]))
    merge = loramerge.combine([source], extras="first", out=tmp_path / "m")
    assert merge.adapter.config["modules_to_save"] is None
    assert distance(logits(load_adapters(llama, [tmp_path / "m"])), expected) < 1e-6


@pytest.mark.parametrize("budget", [{"total_rank": 40}, {"size": 7000}], ids=str)
def test_peft_does_with_a_compact_merge_what_was_decided(pair, budget, tmp_path):
    make, sources = pair
    options = {"profile": "compact", "dtype": "float64", **budget}
    merge = loramerge.combine(sources, "svd", out=tmp_path / "m", **options)
    loramerge.save(merge.adapter, tmp_path / "portable")
    found, wanted = (zoo.output(zoo.load(make, [tmp_path / name])) for name in ("m", "portable"))
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)
    if "size" in budget:
        assert (tmp_path / "m/adapter_model.safetensors").stat().st_size <= budget["size"]
    else:
        assert sum(slot.rank for slot in merge.adapter.slots.values()) <= budget["total_rank"]


def test_compact_experts_have_ranks_by_parameter(tmp_path):
    sources = [zoo.save(tmp_path / str(i), zoo.Mixture, i, MOE) for i in range(2)]
    rules = [loramerge.Rule("1.experts.down_proj", rank=3), loramerge.Rule("experts.gate", rank=1)]
    for out in ("m", "m.safetensors"):
        merge = loramerge.combine(
            sources, "svd", rules=rules, profile="compact", dtype="float64", out=tmp_path / out
        )
    assert len(merge.adapter.config["rank_pattern"]) >= 2
    loramerge.save(loramerge.load(tmp_path / "m"), tmp_path / "portable")
    found, wanted = (zoo.output(zoo.load(zoo.Mixture, [tmp_path / name])) for name in ("m", "portable"))
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)
    for target, update in loramerge.load(tmp_path / "m").items():
        np.testing.assert_array_equal(update.dense(), merge.adapter[target].dense())
