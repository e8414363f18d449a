"""Bundles in torch: numbers of the reference and of PEFT's Arrow, batches, gradients, a model left alone."""

import json
import re

import numpy as np
import pytest

import loramerge as lm
from loramerge.routing.gates.arrow import strays
from loramerge.routing.torch import attach, put_prototypes
from tests.helpers.tiny_models import (
    FLIPPED,
    QUIET,
    TOKENS,
    base,
    gpt2,
    llama,
    peft,
    save_adapter,
    torch,
    transformers,
)
from tests.routing.samples import NAMES, sample, tokens, told

pytestmark = QUIET
RANKS = (2, 5, 3)
TARGETS = (["q_proj", "v_proj"], ["q_proj", "up_proj"], ["v_proj"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three adapters of other ranks, alphas and targets, as PEFT saves them."""
    place = tmp_path_factory.mktemp("sources")
    settings = zip(RANKS, TARGETS, strict=True)
    return [
        save_adapter(place / f"s{i}", llama, i, {"r": r, "lora_alpha": 2 * r + i, "target_modules": names})
        for i, (r, names) in enumerate(settings)
    ]


@pytest.fixture(scope="module")
def bundle(folders, tmp_path_factory):
    return lm.route(folders, "arrow", top_k=2, out=tmp_path_factory.mktemp("out") / "bundle")


def arrow_model(place, count, **options):
    paths = [str(place / f"task_{i}") for i in range(count)]
    return peft.create_arrow_model(base(llama), paths, peft.ArrowConfig(**options)).eval()


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.fixture(scope="module")
def place(bundle, tmp_path_factory, folders):
    out = tmp_path_factory.mktemp("again") / "bundle"
    lm.route(folders, "arrow", top_k=2, out=out)
    return out


def test_peft_loads_the_folders_and_does_the_same_with_exact_prototypes(bundle, place):
    model = arrow_model(place, 3, top_k=2, router_temperature=1.0)
    before = logits(model)
    put_prototypes(model, bundle)
    theirs, plain = logits(model), base(llama)
    with attach(plain, bundle):
        ours = logits(plain)
    bare = logits(base(llama))
    assert (theirs - bare).abs().max() > 1e-2
    assert (theirs - ours).abs().max() < 1e-5
    assert 0 < (before - theirs).abs().max(), "15 power iterations are not exact"
    assert torch.equal(logits(plain), bare), "after the block the model is as it was"


SOME = {  # modules of two adapters on a model of three layers
    "not in the last": ["layers.0.mlp.up_proj", "layers.1.mlp.up_proj"],
    "not in the middle": ["layers.0.mlp.up_proj", "layers.2.mlp.up_proj"],
    "in the last alone": ["layers.2.mlp.up_proj"],
}


def llama3():
    config = llama().config
    config.num_hidden_layers = 3
    return transformers.LlamaForCausalLM(config)


def as_peft_runs_it(make, place, bundle):
    """PEFT's Arrow with our prototypes gives the logits of ours, and both do something."""
    folders = [str(place / f"task_{i}") for i in range(2)]
    theirs = peft.create_arrow_model(base(make), folders, peft.ArrowConfig(top_k=1)).eval()
    put_prototypes(theirs, bundle)
    plain = base(make)
    bare = logits(plain)
    with attach(plain, bundle):
        ours = logits(plain)
    assert (ours - bare).abs().max() > 1e-3
    assert (ours - logits(theirs)).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")  # PEFT fills them in with zeros
@pytest.mark.parametrize("names", SOME.values(), ids=SOME)
def test_peft_runs_a_bundle_that_is_not_in_all_layers(names, tmp_path):
    """One task has another module beside; a config with full names ends in an error, as `check` says."""
    more = ["layers.0.self_attn.q_proj"]
    paths = [
        save_adapter(tmp_path / f"s{i}", llama3, i, {"r": 2, "target_modules": [f"model.{n}" for n in each]})
        for i, each in enumerate((names, names + more))
    ]
    bundle = lm.route(paths, "arrow", top_k=1, out=tmp_path / "b")
    assert {f.effect for f in lm.check(tmp_path / "b", "peft")} <= {"ignores"}, "only what is put right here"
    as_peft_runs_it(llama3, tmp_path / "b", bundle)

    for place in (tmp_path / "b").glob("task_*/adapter_config.json"):
        config = json.loads(place.read_text()) | {"target_modules": [f"model.{n}" for n in names + more]}
        place.write_text(json.dumps(config))
    assert {f.effect for f in lm.check(tmp_path / "b", "peft")} <= {"rejects", "unknown"}
    folders = [str(tmp_path / "b" / f"task_{i}") for i in range(2)]
    with pytest.raises(RuntimeError, match="non-empty"):
        logits(peft.create_arrow_model(base(llama3), folders, peft.ArrowConfig(top_k=1)).eval())


def test_peft_repeats_layers_with_every_adapter_of_a_bundle(tmp_path):
    """As `check` says: what the second adapter repeats are the layers that the first left."""
    config = {"r": 2, "target_modules": ["q_proj"], "layer_replication": [[0, 2], [1, 3]]}
    paths = [save_adapter(tmp_path / f"s{i}", llama3, i, config) for i in range(2)]
    lm.route(paths, "arrow", top_k=1, out=tmp_path / "b")
    assert any("layer_replication" in each.sentence for each in lm.check(tmp_path / "b", "peft"))

    def values(model):
        return [float(each.mlp.up_proj.weight.sum()) for each in model.base_model.model.model.layers]

    tasks = [str(tmp_path / "b" / f"task_{i}") for i in range(2)]
    meant = values(peft.PeftModel.from_pretrained(base(llama3), tasks[0]))
    theirs = values(peft.create_arrow_model(base(llama3), tasks, peft.ArrowConfig(top_k=1)))
    assert theirs == [meant[0], meant[1], meant[1], meant[1]] != meant


def test_the_directions_that_peft_misses_are_those_that_are_counted():
    """From many starts: where σ₂ is near σ₁ its iteration ends elsewhere, as far as is said."""
    rng = np.random.default_rng(0)
    side, inner = (np.linalg.qr(rng.standard_normal((12, 3)))[0] for _ in range(2))
    config = peft.ArrowConfig()
    config.task_adapter_names = ["task_0"]
    layer = peft.tuners.lora.arrow.ArrowLoraLinearLayer(12, config)
    for ratio in (0.5, 0.9, 0.99):
        update = lm.LowRank(side * [1, ratio, 0.1], inner.T)
        bank = lm.route([lm.Adapter.of({"q": update}, "a")], "arrow")["q"]
        (said,) = strays(bank)
        torch.manual_seed(0)
        down, up = (torch.from_numpy(each).float() for each in (update.down, update.up))
        found = [layer.top_right_singular_vec_from_BA(down, up).numpy() for _ in range(60)]
        sines = [np.sqrt(max(0, 1 - float(each @ inner[:, 0]) ** 2)) for each in found]
        assert np.median(sines) == pytest.approx(said, rel=0.5, abs=1e-3)


@pytest.mark.parametrize("module", ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"])
def test_the_reference_is_one_arrow_layer_of_peft(bundle, place, module):
    model = arrow_model(place, 3, top_k=2, router_temperature=1.0)
    logits(model)
    put_prototypes(model, bundle)
    layer = model.get_submodule(f"base_model.model.{module}")
    x = torch.randn(5, 7, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = layer(x) - layer.base_layer(x)
    ours = bundle.forward(module, x.numpy())
    assert np.abs(theirs.numpy() - ours).max() < 1e-6 * max(1, np.abs(ours).max())


README = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_the_lines_of_the_readme_run_as_they_stand(folders, tmp_path, monkeypatch, capsys):
    """In the folder of the bundle, with the base model under the name that the adapters give it."""
    for folder in folders:
        config = json.loads((folder / "adapter_config.json").read_text())
        config |= {"base_model_name_or_path": "tiny/llama", "task_type": "CAUSAL_LM"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    lm.route(folders, "arrow", out=tmp_path / "bundle")
    base(llama).save_pretrained(tmp_path / "bundle" / "tiny" / "llama")
    monkeypatch.chdir(tmp_path / "bundle")
    blocks = README.findall((tmp_path / "bundle" / "README.md").read_text())
    found = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), found)
    layers = [each for each in found["model"].modules() if hasattr(each, "lora_arrow")]

    assert len(blocks) == 2
    assert "torch.Size([3, 5, 32])" in capsys.readouterr().out
    assert len(layers) == 6
    assert all(each.lora_arrow["arrow_router"]._protos_ready for each in layers)


@pytest.mark.parametrize("name", NAMES)
def test_torch_does_what_the_reference_does(name):
    bundle = sample(name)
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleDict({"0": torch.nn.ModuleDict()})})
    for target, layout in bundle.layouts.items():
        layer = torch.nn.Linear(layout.shape[1], layout.shape[0])
        model["layers"]["0"][target.path.rpartition(".")[2]] = layer
    said = told(bundle.gate)
    prompt = torch.tensor(said["prompt"]).double() if "prompt" in said else None
    x = tokens(12).reshape(3, 4, 9)
    layer = model["layers"]["0"]["q"].double()
    plain = layer(torch.tensor(x))
    with attach(model, bundle, rows=said.get("row"), prompt=prompt):
        found = layer(torch.tensor(x)) - plain
    assert np.abs(found.detach().numpy() - bundle.forward("layers.0.q", x, **said)).max() < 1e-5
    assert torch.equal(layer(torch.tensor(x)), plain)


def test_each_request_of_a_batch_has_its_row():
    bundle = sample("table")
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([torch.nn.Module()])
    model.layers[0].q, model.layers[0].v = torch.nn.Linear(9, 7), torch.nn.Linear(6, 8)
    x = torch.tensor(tokens(8).reshape(2, 4, 9), dtype=torch.float32)
    with attach(model, bundle, rows=["ann", "bob"]) as attached:
        both = model.layers[0].q(x)
        attached.rows = ["bob", "bob"]
        same = model.layers[0].q(x)
        attached.rows = "carl"
        with pytest.raises(lm.UsageError, match="no row carl"):
            model.layers[0].q(x)
    plain = model.layers[0].q(x)
    for n, row in enumerate(("ann", "bob")):
        wanted = bundle.forward("layers.0.q", x[n].numpy(), row=row)
        assert np.abs((both - plain)[n].detach().numpy() - wanted).max() < 1e-4
    assert torch.equal(both[1], same[1])


def test_a_router_can_be_trained_and_kept(tmp_path):
    """Gradients reach the tensors of a gate; what was trained is saved like any bundle."""
    bundle = sample("linear", top_k=2)
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([torch.nn.Module()])
    model.layers[0].q, model.layers[0].v = torch.nn.Linear(9, 7), torch.nn.Linear(6, 8)
    x = torch.tensor(tokens(8), dtype=torch.float32)
    with attach(model, bundle) as attached:
        weight = attached.tensors["layers.0.q"]["weight"].requires_grad_()
        losses = []
        for _ in range(5):
            loss = model.layers[0].q(x).square().mean()
            (slope,) = torch.autograd.grad(loss, weight)
            losses.append(loss.item())
            assert torch.isfinite(slope).all()
            assert slope.abs().max() > 0
            with torch.no_grad():
                weight -= 0.05 * slope / slope.norm()
        trained = attached.trained()
    assert losses[-1] < losses[0]
    lm.save_bundle(trained, tmp_path / "b")
    kept = lm.load_bundle(tmp_path / "b")["layers.0.q"].tensors["weight"]
    assert np.array_equal(kept, weight.detach().numpy())
    assert not np.array_equal(kept, bundle["layers.0.q"].tensors["weight"])


@pytest.mark.parametrize("name", ["arrow", "spectr", "seqr", "lag", "smile"])
def test_gradients_flow_through_every_gate_to_the_input(name):
    bundle = sample(name)
    layer = torch.nn.Linear(9, 7)
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([torch.nn.Module()])
    model.layers[0].q, model.layers[0].v = layer, torch.nn.Linear(6, 8)
    x = torch.zeros(4, 9, requires_grad=True)  # where roots have no slope
    with attach(model, bundle):
        layer(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_mixed_gates_hang_on_one_model(bundle):
    mixed = bundle.gated("spectr", only="v_proj", top_k=1)
    names = {str(t): type(mixed.gate_of(t)).__name__ for t in mixed}
    x = np.random.default_rng(0).standard_normal((5, 32)).astype(np.float32)
    model = base(llama)
    layer = model.model.layers[0].self_attn.v_proj
    plain = layer(torch.from_numpy(x))
    with attach(model, mixed):
        found = (layer(torch.from_numpy(x)) - plain).detach().numpy()
    assert names["model.layers.0.self_attn.v_proj"] == "Spectr"
    assert names["model.layers.0.self_attn.q_proj"] == "Arrow"
    assert np.abs(found - mixed.forward("model.layers.0.self_attn.v_proj", x)).max() < 1e-5


def test_a_model_without_the_layers_is_another_model(bundle):
    with pytest.raises(lm.IncompatibleError, match="no layer called"), attach(torch.nn.Linear(2, 2), bundle):
        pass
    wide = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=8, hidden_size=64, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2
        )
    )
    with pytest.raises(lm.IncompatibleError, match="another model"), attach(wide, bundle):
        pass


def test_a_unet_of_diffusers_is_a_model_like_any(tmp_path):
    unet = pytest.importorskip("diffusers").UNet2DConditionModel(
        sample_size=8, in_channels=2, out_channels=2, layers_per_block=1, block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=8, attention_head_dim=4,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), norm_num_groups=4,
    )  # fmt: skip
    layers = [n for n, m in unet.named_modules() if n.endswith("to_q")]
    rng = np.random.default_rng(0)
    experts = [
        lm.Adapter.of(
            {n: lm.LowRank(rng.standard_normal((8, 2)), rng.standard_normal((2, 8))) for n in layers}, f"s{e}"
        )
        for e in range(3)
    ]
    bundle = lm.route(experts, "spectr", dtype="float32", out=tmp_path / "b")
    noise, text = torch.randn(2, 2, 8, 8), torch.randn(2, 3, 8)
    with torch.no_grad():
        plain = unet(noise, 1, text).sample
        with attach(unet, bundle):
            routed = unet(noise, 1, text).sample
        after = unet(noise, 1, text).sample
    assert (
        'AutoModel.from_pretrained("BASE-MODEL", subfolder="unet")' in (tmp_path / "b/README.md").read_text()
    )
    assert len(layers) > 2
    assert (routed - plain).abs().max() > 1e-3
    assert torch.equal(after, plain)


@FLIPPED
def test_layers_that_are_stored_the_other_way_round_do_the_same(tmp_path):
    """GPT-2's Conv1D: PEFT's Arrow with exact prototypes, and ours."""
    config = {"r": 3, "lora_alpha": 6, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    folders = [save_adapter(tmp_path / f"s{i}", gpt2, i, config) for i in range(2)]
    bundle = lm.route(folders, "arrow", top_k=1, out=tmp_path / "b")
    as_peft_runs_it(gpt2, tmp_path / "b", bundle)


def test_half_precision_and_keyword_inputs_are_taken_as_they_come():
    bundle = sample("spectr", top_k=2)
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([torch.nn.Module()])
    model.layers[0].q, model.layers[0].v = torch.nn.Linear(9, 7), torch.nn.Linear(6, 8)
    model = model.to(torch.bfloat16)
    x = tokens(8)
    wide = torch.tensor(x, dtype=torch.bfloat16)
    plain = model.layers[0].q(wide).double()
    with attach(model, bundle):
        found = model.layers[0].q(input=wide)
    assert found.dtype == torch.bfloat16
    wanted = bundle.forward("layers.0.q", wide.double().numpy())
    apart = np.abs((found.double() - plain).detach().numpy() - wanted).max()
    assert apart < 0.05 * np.abs(wanted).max()
