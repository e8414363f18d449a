"""loralib itself: what its layers add to their outputs is the update that we read."""

import json

import numpy as np
import pytest

import loramerge
from loramerge import Target

torch = pytest.importorskip("torch", reason="loralib needs it: it comes with the extra `test`")
loralib = pytest.importorskip("loralib", reason="the oracle: it comes with the extra `test`")

WHICH = {"r": 2, "lora_alpha": 7, "enable_lora": [True, False, True]}


class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.c_attn = loralib.MergedLinear(5, 12, **WHICH)
        self.fan = loralib.MergedLinear(5, 15, **WHICH, fan_in_fan_out=True)
        self.q = loralib.Linear(5, 6, r=2, lora_alpha=7)
        self.wte = loralib.Embedding(9, 4, r=2, lora_alpha=7)


def added(layer, given):
    """What the low-rank part adds to the output."""
    with torch.no_grad():
        whole = layer(given)
        rank, layer.r = layer.r, 0
        plain, layer.r = layer(given), rank
        return (whole - plain).numpy()


def test_every_layer_adds_what_we_read(tmp_path):
    torch.manual_seed(0)
    layers = Layers()
    for name, parameter in layers.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    torch.save({"model_state_dict": loralib.lora_state_dict(layers)}, tmp_path / "x.pt")
    (tmp_path / "x.json").write_text(json.dumps(WHICH))
    adapter = loramerge.load(tmp_path / "x.pt", allow_pickle=True)
    x = torch.randn(3, 5)
    for name in ("c_attn", "fan", "q"):
        wanted = added(getattr(layers, name), x)
        np.testing.assert_allclose(x.numpy() @ adapter[Target(name)].dense().T, wanted, atol=1e-5)
    np.testing.assert_allclose(
        adapter[Target("wte")].dense().T, added(layers.wte, torch.arange(9)), atol=1e-5
    )
