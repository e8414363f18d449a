"""Files of torch.save: refused by default; with --allow-pickle read as torch reads them, running nothing."""

import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

import loramerge
from loramerge.formats.files.pickles import open_pickle
from tests.helpers.files import folder, tensors

torch = pytest.importorskip("torch", reason="torch.save is the oracle: it comes with the extra `test`")


def in_torch(values):
    return OrderedDict((name, torch.from_numpy(value)) for name, value in values.items())


FORMS = {"zip": True, "before torch 1.6": False}


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def saved(request, tmp_path):
    """Saves a value as torch does, in one of its two forms."""

    def save(value, name="x.bin"):
        path = tmp_path / name
        torch.save(value, path, _use_new_zipfile_serialization=request.param)
        return path

    return save


VALUES = {
    "float32": torch.arange(12.0).reshape(3, 4),
    "bfloat16": torch.linspace(-2, 2, 7).bfloat16(),
    "float16": torch.linspace(-2, 2, 7).half(),
    "float64": torch.linspace(-2, 2, 7).double(),
    "integers": torch.arange(5),
    "bools": torch.tensor([True, False]),
    "transposed": torch.arange(12.0).reshape(3, 4).T,
    "a slice of another": torch.arange(20.0)[5:15:3],
    "a scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "a parameter": torch.nn.Parameter(torch.ones(2, 2)),
}


def test_every_tensor_is_the_one_that_torch_reads(saved):
    whole = torch.arange(6.0)
    path = saved({**VALUES, "first": whole[:3], "second of one storage": whole[2:]})
    file, expected = open_pickle(path, "x"), torch.load(path, weights_only=True)
    assert list(file.tensors) == list(expected)
    for name, tensor in file.tensors.items():
        wanted = expected[name].detach()
        assert tensor.shape == tuple(wanted.shape)
        np.testing.assert_array_equal(tensor.read().astype("f8"), wanted.double().numpy())


def test_a_state_dict_of_a_module(saved):
    module = torch.nn.Linear(3, 2)
    file = open_pickle(saved(module.state_dict()), "x")
    np.testing.assert_array_equal(file.tensors["weight"].read(), module.weight.detach().numpy())


def test_a_folder_with_a_pickle_is_read_only_when_allowed(cli, saved, tmp_path):
    values = tensors()
    plain = loramerge.load(folder(tmp_path / "plain", values))
    where = folder(tmp_path / "a", values)
    (where / "adapter_model.safetensors").unlink()
    saved(in_torch(values), "a/adapter_model.bin")
    for command in (["inspect", where], ["combine", where, "-o", tmp_path / "m"]):
        cli(*command).refused(3, "adapter_model.bin is a pickle", "--allow-pickle")
        assert cli(*command, "--allow-pickle").code == 0
    for adapter in (loramerge.load(where, allow_pickle=True), loramerge.load(tmp_path / "m")):
        for target, update in adapter.items():
            np.testing.assert_array_equal(update.dense(), plain[target].dense())


@pytest.mark.parametrize("end", [".bin", ".pt", ".pth", ".ckpt", ".pkl"])
def test_a_bare_pickle_is_a_bare_file_when_allowed(cli, saved, tmp_path, end):
    path = saved(in_torch(tensors()), f"y{end}")
    assert cli("inspect", path, "--allow-pickle", "--alpha", 4).code == 0
    cli("inspect", path, "--allow-pickle").refused(3, "--alpha")


class Trap:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def zipped(path, data, **parts):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", data)
        for name, content in parts.items():
            archive.writestr(f"x/{name}", content)


def forged(count=4, offset=0, size=4, step=1):
    """A state dict of one tensor, which may lie about where it is."""
    text = (
        b"\x80\x02}X\x01\x00\x00\x00a"  # {"a":
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    )
    text += b"J" + struct.pack("<i", count) + b"tQ" + b"J" + struct.pack("<i", offset)
    text += b"J" + struct.pack("<i", size) + b"\x85" + b"J" + struct.pack("<i", step) + b"\x85"
    return text + b"\x89}tRs."


def test_a_forged_tensor_that_tells_the_truth_is_read(tmp_path):
    zipped(tmp_path / "x.bin", forged(), **{"data/0": np.arange(4, dtype="<f4").tobytes()})
    (tensor,) = open_pickle(tmp_path / "x.bin", "x").tensors.values()
    assert tensor.read().tolist() == [0, 1, 2, 3]


HOSTILE = {
    "a tensor beyond its storage": forged(offset=1),
    "a negative offset": forged(offset=-1),
    "a negative step": forged(step=-1),
    "a tensor of 2 GiB on four numbers": forged(size=2**29, step=0),
    "a storage that is not there": forged().replace(b"\x01\x00\x00\x000X", b"\x01\x00\x00\x009X"),
    "a storage that is longer than the file": forged(count=2**30),
    "a large memo number": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a tensor that is called with too little": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "methods that are shadowed": b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb.",
    "a list": pickle.dumps([1]),
    "names that are no text": pickle.dumps({1: 2}),
    "values that are no tensors": pickle.dumps({"a": 2}),
    "half a pickle": forged()[:30],
    "nothing": b"",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_or_hostile_pickle_is_a_sentence(cli, tmp_path, data):
    zipped(tmp_path / "x.bin", data, **{"data/0": bytes(16)})
    cli("inspect", tmp_path / "x.bin", "--allow-pickle", "--alpha", 4)
    assert cli.code in (1, 3), cli.err
    cli.refused(cli.code, "x.bin")
    (tmp_path / "y.bin").write_bytes(data)
    cli("inspect", tmp_path / "y.bin", "--allow-pickle", "--alpha", 4)
    assert cli.code in (1, 3), cli.err
    cli.refused(cli.code, "y.bin")


def test_a_zip_that_is_packed_is_refused(cli, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", forged())
        archive.writestr("x/data/0", bytes(10**6))
    cli("inspect", tmp_path / "x.bin", "--allow-pickle").refused(1, "x.bin", "not those that torch writes")


NAMES = [
    "os\nsystem",
    "builtins\neval",
    "builtins\ngetattr",
    "torch\nload",
    "torch.nn.modules.linear\nLinear",
]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_a_pickle_names_is_run(cli, tmp_path, name):
    data = b"c" + name.encode() + b"\n(X\x09\x00\x00\x00touch ranttR."
    zipped(tmp_path / "x.bin", data)
    cli("inspect", tmp_path / "x.bin", "--allow-pickle").refused(3, name.replace("\n", "."), "never run")


def test_a_trap_of_torch_save_does_not_spring(cli, saved, tmp_path):
    path = saved({"a": Trap(tmp_path / "ran")})
    cli("inspect", path, "--allow-pickle").refused(3, "open", "never run")
    assert not (tmp_path / "ran").exists()
