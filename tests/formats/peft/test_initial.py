"""Adapters whose start was taken out of the base: refused alone, exact with the adapter they began with."""

import json
import shutil

import numpy as np
import pytest

import loramerge
from tests.helpers import zoo
from tests.helpers.files import Cli, folder, tensors
from tests.helpers.tiny_models import QUIET, peft, torch

pytestmark = QUIET


class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = torch.nn.Linear(10, 6)
        self.out = torch.nn.Linear(6, 4)

    def forward(self, x):
        return self.out(torch.tanh(self.lin(x)))


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Cli(capsys)


def train(path, init, **more):
    """A "trained" adapter and its start, as PEFT's guide tells to save both; the outputs of its model."""
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["lin"], init_lora_weights=init, **more)
    model = peft.get_peft_model(zoo.base(Layers, torch.float32), config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(path / "start")
    model.peft_config["default"].init_lora_weights = init
    randomness = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=randomness)
    model.save_pretrained(path / "a")
    with torch.no_grad():
        return model.eval()(zoo.INPUT).numpy()


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}], ids=["alpha / r", "rsLoRA"])
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_with_its_start_it_is_the_update_of_the_original_base(init, more, cli, tmp_path):
    expected = train(tmp_path, init, **more)
    cli("combine", "a", "-o", "m").refused(3, init, "--initial")
    assert cli("combine", "a", "--initial", "a=start", "-o", "m").code == 0
    model = peft.PeftModel.from_pretrained(zoo.base(Layers, torch.float32), "m")
    with torch.no_grad():
        np.testing.assert_allclose(model(zoo.INPUT).numpy(), expected, rtol=1e-4, atol=1e-5)
    made = json.loads((tmp_path / "m/loramerge.json").read_text())
    assert len(made["sources"]) == 1
    (update,) = loramerge.load("a", initial="start").values()
    assert update.rank == 6


def test_the_start_minus_itself_is_zero(tmp_path):
    train(tmp_path, "pissa")
    shutil.copytree(tmp_path / "start", tmp_path / "same")
    shutil.copy(tmp_path / "a/adapter_config.json", tmp_path / "same/adapter_config.json")
    (update,) = loramerge.load(tmp_path / "same", initial=tmp_path / "start").values()
    assert update.norm() < 1e-6


WRONG = {
    "a plain adapter": ({}, {}, "start", (2, "plain LoRA already")),
    "other modules": (
        {},
        {"init": "pissa", "start": tensors(shapes={"q": (2, 3)})},
        "start",
        (3, "only one"),
    ),
    "another shape": (
        {},
        {"init": "pissa", "start": tensors(shapes={"layers.0.q": (6, 4), "layers.0.v": (4, 7),
                                                   "layers.1.q": (6, 5), "layers.1.v": (4, 7)})},
        "start",
        (3, "another shape"),
    ),
    "another scale": ({"lora_alpha": 3}, {"init": "pissa"}, "start", (3, "another scale")),
    "no folder": ({}, {"init": "pissa"}, "nowhere", (2, "nowhere")),
    "LoftQ": ({}, {"init": "loftq"}, "start", (3, "quantise")),
}  # fmt: skip


@pytest.mark.parametrize(("config", "made", "start", "refusal"), WRONG.values(), ids=WRONG)
def test_a_start_that_does_not_fit_is_refused(config, made, start, refusal, cli, tmp_path):
    folder(tmp_path / "a", tensors(), init_lora_weights=made.get("init", True))
    folder(tmp_path / "start", made.get("start", tensors(1)), **config)
    cli("combine", "a", "--initial", f"a={start}", "-o", "m").refused(*refusal)


@pytest.mark.parametrize("value", ["start", "=start", "a=", "b=start"])
def test_a_start_is_given_as_a_source_and_a_path(value, cli, tmp_path):
    folder(tmp_path / "a")
    assert cli("combine", "a", "--initial", value).code == 2
