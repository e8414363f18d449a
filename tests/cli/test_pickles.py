"""Every command that reads an adapter reads a pickle, once its user allows it, and says so before."""

import json

import pytest

from tests.helpers.files import folder, tensors

torch = pytest.importorskip("torch", reason="torch.save writes the pickle: it comes with the extra `test`")

COMMANDS = {
    "check": ["check", "a", "--for", "peft"],
    "combine": ["combine", "a", "b", "-o", "other"],
    "convert": ["convert", "a", "c", "--to", "peft"],
    "diff": ["diff", "a", "b"],
    "inspect": ["inspect", "a"],
    "replay": ["replay", "m"],
    "resize": ["resize", "a", "--rank", "1", "-o", "small"],
}


@pytest.fixture(autouse=True)
def sources(cli, tmp_path):
    for seed, name in enumerate("ab"):
        where = folder(tmp_path / name, tensors(seed))
        values = {key: torch.from_numpy(value) for key, value in tensors(seed).items()}
        torch.save(values, where / "adapter_model.bin")
        (where / "adapter_model.safetensors").unlink()
    assert cli("combine", "a", "b", "--allow-pickle", "-o", "m").code == 0


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_pickle_is_read_once_it_is_allowed(cli, command):
    cli(*command).refused(3, "adapter_model.bin is a pickle", "--allow-pickle")
    assert cli(*command, "--allow-pickle").code == 0


def test_a_record_never_allows_it(cli, tmp_path):
    record = json.loads((tmp_path / "m/loramerge.json").read_text())
    assert "pickle" not in json.dumps(record["settings"])
