"""Files of torch.save: refused by default; with --allow-pickle read as torch reads them, running nothing."""

import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

import loramerge
from loramerge.errors import LoramergeError
from loramerge.formats.files import opcodes
from loramerge.formats.files.opcodes import STEPS
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
    cli("combine", path, "--allow-pickle").refused(3, "--alpha")


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


def shared(names, size=1000):
    """As many tensors of one storage."""
    one = forged(count=size, size=size).removeprefix(b"\x80\x02}").removesuffix(b"s.")
    start, _, rest = one.partition(b"a")  # its name
    return b"\x80\x02}" + b"".join(start + bytes([name]) + rest + b"s" for name in names) + b"."


@pytest.mark.parametrize(("names", "many"), [(b"ab", False), (range(64, 96), True)])
def test_numbers_are_shared_by_a_few_tensors_and_not_by_many(names, many, tmp_path):
    """A merge of a small file would write as many numbers as its tensors have together."""
    zipped(tmp_path / "x.bin", shared(names), **{"data/0": bytes(4000)})
    if not many:
        assert len(open_pickle(tmp_path / "x.bin", "x").tensors) == 2
        return
    with pytest.raises(loramerge.SourceError, match="the same numbers under many names"):
        open_pickle(tmp_path / "x.bin", "x")


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
    cli("combine", tmp_path / "x.bin", "--allow-pickle").refused(3, name.replace("\n", "."), "never run")


def test_a_trap_of_torch_save_does_not_spring(cli, saved, tmp_path):
    path = saved({"a": Trap(tmp_path / "ran")})
    cli("combine", path, "--allow-pickle").refused(3, "open", "never run")
    assert not (tmp_path / "ran").exists()


def test_the_instructions_are_those_that_torch_writes(saved, tmp_path):
    module = torch.nn.Linear(3, 2).state_dict()
    many = {f"layer{i}": torch.zeros(i % 3, 300, 70000 * (i == 1)) for i in range(300)}
    path = saved({"state_dict": OrderedDict({**VALUES, **many, "p": torch.nn.Parameter(torch.ones(1))})})
    assert len(open_pickle(path, "x").tensors) == len(VALUES) + len(many) + 1
    assert open_pickle(saved(module, "m.bin"), "m").tensors.keys() == module.keys()
    assert not {pickle.DUP, pickle.BYTEARRAY8, pickle.NEWOBJ, pickle.STACK_GLOBAL, pickle.EXT1} & STEPS.keys()


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word


CHAIN = 10**6
BOMBS = {
    "DUP of what is kept": b"\x80\x02]" + b"2" * CHAIN + b".",
    "a chain of tuples": b"\x80\x02)" + b"\x85" * CHAIN + b".",
    "a chain of tuples in a table": b"\x80\x02}" + text(b"a") + b")" + b"\x85" * CHAIN + b"s.",
    "tuples that double": b"\x80\x02)" + b"q\x00h\x00\x86" * 10**5 + b".",
    "a tuple of a million": b"\x80\x02(" + b"K\x01" * CHAIN + b"t.",
    "lists in lists": b"\x80\x02]" + b"q\x00]h\x00a" * (CHAIN // 4) + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a table in itself": b"\x80\x02}q\x00" + text(b"a") + b"h\x00s.",
    "3 GB of BYTEARRAY8": b"\x80\x05\x96" + struct.pack("<Q", 3 * 10**9) + b".",
    "3 GB of BINBYTES8": b"\x80\x04\x8e" + struct.pack("<Q", 3 * 10**9) + b".",
    "3 GB of BINUNICODE": b"\x80\x02X" + struct.pack("<I", 3 * 10**9) + b".",
    "a number of 2 GB": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    "a frame of 3 GB": b"\x80\x04\x95" + struct.pack("<Q", 3 * 10**9) + b".",
    "memo numbers": b"\x80\x02N"
    + b"".join(b"r" + struct.pack("<I", 2**32 - 1 - i) for i in range(CHAIN // 4))
    + b".",
    "BUILD of a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}" + text(b"make") + b"K\x01sb.",
    "BUILD of a storage class": b"\x80\x02ctorch\nFloatStorage\n}" + text(b"dtype") + b"K\x01sb.",
    "BUILD with slots": b"\x80\x02ccollections\nOrderedDict\n)R}}" + text(b"clear") + b"K\x01s\x86b.",
    "a call of a text": b"\x80\x02" + text(b"a") + b")R.",
    "a call with itself": b"\x80\x02ctorch._utils\n_rebuild_parameter\nq\x00h\x00\x85R.",
    "names of a megabyte": b"\x80\x02c" + b"a" * CHAIN + b"\nb\n.",
    "many calls": b"\x80\x02" + b"ccollections\nOrderedDict\n)R0" * 10**4 + b".",
    "an extension": b"\x80\x02\x82\x01.",
    "INST": b"(ios\nsystem\n.",
    "a stack that is empty": b"\x80\x02" + b"t" * 5 + b".",
    "marks": b"\x80\x02" + b"(" * CHAIN + b".",
    "a table that a function hands back, put into itself three hundred times": (
        b"\x80\x02ctorch._utils\n_rebuild_parameter\nq\x02}\x85q\x01R("
        + b"".join(text(b"%d" % i if i else b"model") + b"h\x02h\x01R" for i in range(300))
        + b"u."
    ),
    "one mark too many": b"\x80\x02(}u.",
    "names that are lists": b"\x80\x02}]]s.",
    "a persistent storage of nothing": b"\x80\x02NQ.",
    "a storage of texts": b"\x80\x02(" + text(b"a") * 5 + b"tQ.",
}
TRIED = """
import resource, sys
import loramerge
from pathlib import Path
from loramerge.errors import LoramergeError
from loramerge.formats.files.pickles import open_pickle
resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for path in sys.argv[1:]:
    try:
        open_pickle(Path(path), "x")
        print("read", path)
    except LoramergeError as error:
        assert str(error).isprintable() and len(str(error)) < 400
        print(error.exit_code)
"""


def test_no_bomb_goes_off(tmp_path):
    """In a process of its own, which may neither take gigabytes nor minutes."""
    paths = []
    for i, data in enumerate(BOMBS.values()):
        zipped(tmp_path / f"{i}.bin", data)
        (tmp_path / f"{i}.pt").write_bytes(data)
        paths += [tmp_path / f"{i}.bin", tmp_path / f"{i}.pt"]
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", TRIED, *map(str, paths)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    said = done.stdout.split("\n")[:-1]
    assert done.returncode == 0, (done.stderr[-500:], done.returncode, list(BOMBS)[len(said) // 2 :][:1])
    wrong = [(list(BOMBS)[i // 2], line) for i, line in enumerate(said) if line not in ("1", "3")]
    assert not wrong


@pytest.mark.parametrize(
    ("limit", "most", "program", "said"),
    [
        ("MADE", 100, b"]" * 101, "makes more tables, lists and tuples"),
        ("MADE", 100, b"ccollections\nOrderedDict\nq\x00" + b"h\x00)R" * 101, "makes more tables"),
        ("MADE", 100, b"N\x85" * 101, "makes more tables"),
        ("KEPT", 100, b"N" + b"".join(b"q" + bytes([i]) for i in range(101)), "keeps more values"),
        ("NESTED", 1000, b"(" * 1001, "nests deeper"),
    ],
)
def test_a_pickle_makes_no_more_than_a_state_dict(monkeypatch, limit, most, program, said):
    """One byte of a file made hundreds of memory, up to the number of instructions: 2 GB."""
    monkeypatch.setattr(opcodes, limit, most, raising=False)
    with pytest.raises(ValueError, match=said):
        opcodes.run(b"\x80\x02" + program + b".", 0, lambda *_: opcodes.Function(OrderedDict), print)


def test_two_hundred_thousand_tensors_are_within_the_limits(monkeypatch, saved):
    """What each of them needs, with a margin for what a file says once."""
    each = {f"layer.{i}.weight": torch.ones(2, 3) for i in range(200)}
    for limit in ("MOST", "MADE", "KEPT"):
        monkeypatch.setattr(opcodes, limit, getattr(opcodes, limit) // 1000)
    assert len(open_pickle(saved(each), "x").tensors) == 200


def entry_lies(data, **lies):
    """A zip whose directory says other sizes than its parts have."""
    place = data.index(b"PK\x01\x02")
    offsets = {"compressed": 20, "size": 24, "offset": 42}
    for name, value in lies.items():
        at = place + offsets[name]
        data = data[:at] + struct.pack("<I", value) + data[at + 4 :]
    return data


@pytest.mark.parametrize(
    "lies",
    [
        {"size": 3 * 10**9},
        {"compressed": 3 * 10**9},
        {"size": 3 * 10**9, "compressed": 3 * 10**9},
        {"offset": 2**31},
    ],
)
def test_a_zip_that_lies_about_its_sizes_is_a_sentence(tmp_path, lies):
    zipped(tmp_path / "x.bin", forged(), **{"data/0": bytes(16)})
    (tmp_path / "x.bin").write_bytes(entry_lies((tmp_path / "x.bin").read_bytes(), **lies))
    with pytest.raises(LoramergeError):
        open_pickle(tmp_path / "x.bin", "x")


def test_a_storage_lies_within_its_own_part_of_the_file(tmp_path):
    zipped(tmp_path / "x.bin", forged(), **{"data/0": bytes(12), "more": bytes(100)})
    with pytest.raises(LoramergeError, match="cut short"):
        open_pickle(tmp_path / "x.bin", "x")


@pytest.mark.parametrize(("before", "after"), [(b"PK\x03\x04", b"PK\x03\x05"), (b"x/data/0", b"x/data/1")])
def test_numbers_are_taken_from_a_part_that_says_it_is_theirs(tmp_path, before, after):
    """The directory may point anywhere; torch refuses such a file as well."""
    zipped(tmp_path / "x.bin", forged(), **{"data/0": bytes(16)})
    data = (tmp_path / "x.bin").read_bytes()
    at = data.index(before, data.index(b"PK\x03\x04", 1))  # the head of the second part
    (tmp_path / "x.bin").write_bytes(data[:at] + after + data[at + len(after) :])
    with pytest.raises(LoramergeError, match="damaged"):
        open_pickle(tmp_path / "x.bin", "x")


def test_a_storage_of_an_older_file_is_as_long_as_it_says(tmp_path):
    path, said = tmp_path / "x.bin", struct.pack("<Q", 4)
    torch.save({"a": torch.arange(4.0)}, path, _use_new_zipfile_serialization=False)
    assert len(open_pickle(path, "x").tensors) == 1
    data = path.read_bytes()
    assert data[-24:-16] == said
    path.write_bytes(data[:-24] + struct.pack("<Q", 5) + data[-16:])
    with pytest.raises(LoramergeError, match="not as long as its description"):
        open_pickle(path, "x")
    with pytest.raises(RuntimeError):
        torch.load(path, weights_only=True)
