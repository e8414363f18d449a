"""A LoKr of two whole matrices has the scale at which LyCORIS trained it."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import loramerge as lm
from tests.helpers.tiny_models import torch

lycoris = pytest.importorskip("lycoris.modules.lokr")
NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def trained(path, dim, said=True, **options):
    """A module of LyCORIS itself on disk, and the update that it computes in training."""
    layer = torch.nn.Linear(6, 8)
    module = lycoris.LokrModule(NAME, layer, lora_dim=dim, alpha=1, full_matrix=True, **options)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    assert module.use_w1
    assert module.use_w2
    state = {f"{NAME}.{key}": value.detach().numpy() for key, value in module.state_dict().items()}
    args = json.dumps({"algo": "lokr", **{key: str(value) for key, value in options.items()}})
    metadata = {"ss_network_dim": str(dim), "ss_network_args": args} if said else {}
    save_file(state, path, metadata)
    module.apply_to()
    x = torch.eye(6)
    return (layer(x) - torch.nn.functional.linear(x, layer.weight, layer.bias)).T.detach().double().numpy()


# A kind from the wild: B3, LoKr of two whole sides.
@pytest.mark.parametrize("rs_lora", [True, False])
@pytest.mark.parametrize("dim", [16, 6])
def test_it_is_read_as_it_was_trained(dim, rs_lora, tmp_path):
    weight = trained(tmp_path / "a.safetensors", dim, rs_lora=rs_lora)
    adapter = lm.load(tmp_path / "a.safetensors")
    (update,) = adapter.values()
    np.testing.assert_allclose(update.dense(), weight, rtol=1e-4, atol=1e-5)
    assert not any("rs_lora" in oddity for oddity in adapter.oddities)


@pytest.mark.parametrize(("dim", "rs_lora", "noted"), [(16, True, True), (6, True, True), (6, False, False)])
def test_where_the_file_leaves_it_open_a_note_says_so(dim, rs_lora, noted, tmp_path):
    trained(tmp_path / "a.safetensors", dim, said=False, rs_lora=rs_lora)
    adapter = lm.load(tmp_path / "a.safetensors")
    assert {update.scale for update in adapter.values()} == {1.0}
    assert any("rs_lora" in oddity for oddity in adapter.oddities) == noted
