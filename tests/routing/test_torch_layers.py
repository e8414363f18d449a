"""Layers of all kinds under a bundle in torch: convolutions as PEFT has them, and what no gate can weigh."""

import numpy as np
import pytest

import loramerge as lm
from loramerge.routing.torch import attach, put_prototypes
from tests.helpers.adapters import random_adapters
from tests.helpers.tiny_models import QUIET, base, peft, save_adapter, torch
from tests.routing.samples import NAMES, sample, told

pytestmark = QUIET


def pair_model(q):
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([torch.nn.Module()])
    model.layers[0].q, model.layers[0].v = q, torch.nn.Linear(6, 8)
    return model


REFUSED = {
    "an embedding": lambda: torch.nn.Embedding(9, 7),
    "a grouped convolution": lambda: torch.nn.Conv2d(18, 14, 1, groups=2),
    "a transposed convolution": lambda: torch.nn.ConvTranspose2d(9, 7, 1),
    "three dimensions": lambda: torch.nn.Conv3d(9, 7, 1),
    r"a convolution of 3×3 in the model and of 1 here": lambda: torch.nn.Conv2d(1, 7, 3),
}


@pytest.mark.parametrize(("words", "layer"), REFUSED.items(), ids=REFUSED)
def test_a_layer_that_no_gate_can_weigh_is_named_and_the_remedy_works(words, layer):
    model, bundle = pair_model(layer()), sample("spectr")
    with pytest.raises(lm.IncompatibleError, match=rf"layers\.0\.q is .*{words}"), attach(model, bundle):
        pass
    rest = lm.route(random_adapters(0, (2, 5, 3)), "spectr", exclude="q$")
    with attach(model, rest):
        assert model.layers[0].v(torch.zeros(3, 6)).shape == (3, 8)


CONVS = {
    "1x1": {"kernel_size": 1},
    "3x3": {"kernel_size": 3, "padding": 1},
    "steps": {"kernel_size": 3, "stride": 2, "padding": (0, 2)},
    "same": {"kernel_size": (3, 2), "padding": "same", "dilation": 2},
    "mirrored": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
}


class Convs(torch.nn.Module):
    """Two convolutions, as a model of PEFT."""

    def __init__(self, **options):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 5, **options)
        self.last = torch.nn.Conv1d(5, 4, 3, stride=2, padding=1)

    def forward(self, x):
        return self.last(self.first(x).flatten(2))


@pytest.mark.parametrize("options", CONVS.values(), ids=CONVS)
def test_convolutions_do_what_peft_does(options, tmp_path):
    """PEFT adds up active adapters, as the gate static does. Merged: its layer forgets how it is padded."""

    def make():
        return Convs(**options)

    config = {"lora_alpha": 4, "target_modules": ["first", "last"]}
    folders = [save_adapter(tmp_path / f"s{i}", make, i, {"r": 2 + i, **config}) for i in range(2)]
    model = peft.PeftModel.from_pretrained(base(make), folders[0], adapter_name="0")
    model.load_adapter(folders[1], adapter_name="1")
    model.base_model.set_adapter(["0", "1"])
    model.merge_adapter()
    bundle = lm.route(folders, "static", out=tmp_path / "b")
    assert {target.kind for target in bundle} == {"conv"}
    plain, x = base(make), torch.randn(2, 3, 8, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        bare, theirs = plain(x), model.eval()(x)
        with attach(plain, bundle):
            ours = plain(x)
            one = plain(x[0:1])
        inner = plain.first(x[0])
        with attach(plain, bundle):
            single = plain.first(x[0]) - inner
    assert (theirs - bare).abs().max() > 1e-2
    assert (theirs - ours).abs().max() < 1e-4
    assert (ours[:1] - one).abs().max() < 1e-5
    assert single.shape == inner.shape, "one picture without a batch"
    assert [f.effect for f in lm.check(tmp_path / "b", "peft")] == ["ignores"]


def test_a_gate_weighs_every_place_of_a_convolution(tmp_path):
    """By what lies under the kernel there, as the reference has it; PEFT's Arrow takes no convolutions."""

    def make():
        return Convs(kernel_size=3, padding=1)

    config = {"r": 2, "target_modules": ["first"]}
    folders = [save_adapter(tmp_path / f"s{i}", make, i, config) for i in range(3)]
    bundle = lm.route(folders, "arrow", top_k=1, out=tmp_path / "b")
    plain, x = base(make).double(), torch.randn(2, 3, 6, 7, dtype=torch.float64)
    with torch.no_grad():
        bare = plain.first(x)
        with attach(plain, bundle):
            found = plain.first(x) - bare
    under = torch.nn.functional.unfold(x, 3, padding=1).transpose(1, 2).numpy()
    wanted = bundle.forward("first", under).transpose(0, 2, 1).reshape(found.shape)
    assert len(set(bundle.explain("first", under).first)) > 1
    assert np.abs(found.numpy() - wanted).max() < 1e-5
    (finding,) = lm.check(tmp_path / "b", "peft")
    assert (finding.effect, "linear layers" in finding.sentence) == ("rejects", True)
    assert "put_prototypes" not in (tmp_path / "b" / "README.md").read_text()
    paths = [str(tmp_path / f"b/task_{i}") for i in range(3)]
    with pytest.raises(TypeError, match="Linear"):
        peft.create_arrow_model(base(make), paths, peft.ArrowConfig())


def test_what_is_no_model_no_bundle_no_row_and_no_prompt_is_a_sentence():
    model = pair_model(torch.nn.Linear(9, 7))
    table, prompted = sample("table"), sample("outchan")
    for args, said, words in [
        ((3, table), {}, "must be a module of torch"),
        ((model, "bundle"), {}, "loramerge.load_bundle"),
        ((model, table), {"rows": "carl"}, "no row carl"),
        ((model, table), {"rows": 3}, "named by text"),
        ((model, sample("arrow")), {"rows": "ann"}, "goes by its input"),
        ((model, prompted), {}, "prompt="),
        ((model, prompted), {"prompt": torch.ones(3, 5)}, r"\(3, 5\)"),
        ((model, prompted), {"prompt": "hello"}, r"\(\)"),
    ]:
        with pytest.raises(lm.UsageError, match=words), attach(*args, **said):
            pass
    with pytest.raises(lm.UsageError, match=r"loramerge\.load_bundle"):
        put_prototypes(model, "bundle")


@pytest.mark.parametrize("name", NAMES)
def test_no_tokens_have_no_outputs(name):
    model, bundle = pair_model(torch.nn.Linear(9, 7)), sample(name)
    said = told(bundle.gate)
    with attach(model, bundle, rows=said.get("row"), prompt=said.get("prompt")):
        assert model.layers[0].q(torch.zeros(2, 0, 9)).shape == (2, 0, 7)


class Numbered(torch.nn.Module):
    """As in image models, layers of several kinds are called 0."""

    def __init__(self):
        super().__init__()
        self.to_out = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
        self.acts = torch.nn.ModuleList([torch.nn.ReLU()])

    def forward(self, x):
        return self.acts[0](self.to_out[0](x))


def test_peft_cannot_tell_modules_that_are_called_by_a_number_apart(tmp_path):
    """As `check` says; an adapter of the bundle by itself is loaded, and `attach` runs all."""
    config = {"r": 2, "target_modules": ["to_out.0"]}
    folders = [save_adapter(tmp_path / f"s{i}", Numbered, i, config) for i in range(2)]
    bundle = lm.route(folders, "arrow", out=tmp_path / "b")
    assert [f.effect for f in lm.check(tmp_path / "b", "peft")] == ["rejects"]
    paths = [str(tmp_path / f"b/task_{i}") for i in range(2)]
    with pytest.raises(ValueError, match="not supported"):
        peft.create_arrow_model(base(Numbered), paths, peft.ArrowConfig(top_k=1))
    x, plain = torch.ones(1, 4), base(Numbered)
    alone = peft.PeftModel.from_pretrained(base(Numbered), paths[0])
    assert not torch.equal(alone(x), plain(x))
    with attach(plain, bundle):
        assert plain(x).shape == (1, 4)
