"""`inspect` tells what is in files that cannot be merged, and a merge refuses them with the same sentence."""

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import speaking
from tests.helpers.files import Cli, bare, folder, tensors

Q = "base_model.model.layers.0.q"
OFT = {f"{Q}.oft_blocks": np.ones((2, 3, 3), "f4")}
KOHYA = {
    "lora_unet_a.lora_down.weight": np.ones((2, 6), "f4"),
    "lora_unet_a.lora_up.weight": np.ones((8, 2), "f4"),
    "lora_unet_a.alpha": np.float32(2),
    "lora_unet_a.dora_scale": np.ones((8, 1), "f4"),
}
FILES = {
    "DoRA": lambda p: folder(p, tensors() | {f"{Q}.lora_magnitude_vector": np.ones(6, "f4")}, use_dora=True),
    "OFT": lambda p: folder(p, OFT, peft_type="OFT"),
    "kohya's DoRA": lambda p: bare(p, KOHYA),
    "a gate": lambda p: folder(p, tensors() | {f"{Q}.gate": np.ones(3, "f4")}),
    "unknown": lambda p: bare(p, {"blocks.0.turn": np.ones((2, 3), "f4")}),
    "no alpha": lambda p: bare(p, tensors()),
}
TOLD = {"DoRA": "lora_magnitude_vector", "OFT": "oft_blocks", "kohya's DoRA": "dora_scale", "a gate": "gate",
        "unknown": "turn", "no alpha": "lora_A.weight"}  # fmt: skip


# A kind from the wild: E, inspect of what cannot be merged.
@pytest.mark.parametrize("name", FILES)
def test_what_cannot_be_merged_is_told_and_the_merge_refuses_it(name, tmp_path, capsys):
    source, cli = FILES[name](tmp_path / "a.safetensors"), Cli(capsys)
    with pytest.raises(lm.IncompatibleError) as refusal:
        lm.combine([source])
    found = lm.inspect(source)
    assert found.refusal == str(refusal.value)
    assert cli("combine", source).code == 3
    assert cli("inspect", source).code == 0
    assert f"{TOLD[name]} " in cli.out
    with speaking("shell"), pytest.raises(lm.IncompatibleError) as refusal:
        lm.combine([source])
    assert f"cannot be merged: {refusal.value}" in cli.out
    (plain,) = cli("inspect", source, "--json").json()["adapters"]
    assert {**plain, "refusal": found.refusal} == found.to_dict()
    assert sum(int(row[1]) for row in found.table()[1:]) == len(plain["tensors"])


def test_a_pickle_is_not_opened_to_tell_what_is_in_it(tmp_path, capsys):
    (tmp_path / "a.bin").write_bytes(b"x")
    assert Cli(capsys)("inspect", tmp_path / "a.bin").code == 3
