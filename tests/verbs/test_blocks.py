"""`inspect --blocks`: by hand."""

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge import Target
from loramerge.formats.dialects.blocks import block
from loramerge.verbs.blocks import blocks
from tests.helpers.dialects import pairs, saved
from tests.helpers.files import Cli

NAMES = {
    ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"): "IN04",
    ("unet", "mid_block.attentions.0.proj_in"): "M00",
    ("unet", "up_blocks.3.attentions.2.proj_out"): "OUT11",
    ("unet", "time_embedding.linear_1"): "beside the blocks",
    ("text_encoder", "text_model.encoder.layers.3.mlp.fc1"): "BASE",
    ("transformer", "single_transformer_blocks.37.proj_out"): "single_transformer_blocks.37",
    ("transformer", "double_blocks.3.img_attn.qkv"): "double_blocks.03",
    ("transformer", "proj_out"): "beside the blocks",
    ("model", "model.layers.11.self_attn.q_proj"): "layers.11",
}


@pytest.mark.parametrize("place", NAMES)
def test_a_block_is_called_as_makers_call_it(place):
    component, path = place
    assert block(Target(path, component=component)) == NAMES[place]


def test_the_energy_of_all_blocks_is_that_of_the_adapter(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shapes = {f"transformer.blocks.{n}.attn1.to_{x}": (4, 4) for n in (0, 11) for x in "qk"}
    path = saved(tmp_path / "a.safetensors", pairs(shapes, ("lora_A", "lora_B")))
    found = blocks(lm.inspect(path))
    own = {n: [u.norm() for t, u in lm.load(path).items() if f".{n}." in t.path] for n in (0, 11)}
    assert [(each.name, each.modules) for each in found] == [("blocks.00", 2), ("blocks.11", 2)]
    for each, norms in zip(found, own.values(), strict=True):
        assert each.norm == pytest.approx(np.linalg.norm(norms))
    assert sum(each.share for each in found) == pytest.approx(1)
    cli = Cli(capsys)
    assert cli("inspect", "a.safetensors", "--blocks").code == 0
    assert "blocks.11" in cli.out
    assert cli("inspect", "a.safetensors", "--blocks", "--json").code == 0
    assert [each["name"] for each in json.loads(cli.out)["adapters"][0]["blocks"]] == [
        "blocks.00",
        "blocks.11",
    ]
