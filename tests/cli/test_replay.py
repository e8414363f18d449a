"""`loramerge replay`: where it looks, where it writes, what it says."""

import json

import pytest

from tests.helpers.files import content, folder, tensors


@pytest.fixture(autouse=True)
def merged(cli, tmp_path):
    folder(tmp_path / "a", tensors(1))
    folder(tmp_path / "b", tensors(2))
    for out in ("m", "m.safetensors"):
        assert cli("combine", "a", "b", "--method", "svd", "-o", out).code == 0


@pytest.mark.parametrize(
    ("record", "out"),
    [("m", "replayed"), ("m/loramerge.json", "replayed"), ("m.safetensors", "replayed.safetensors")],
)
def test_it_writes_the_same_and_says_so(cli, tmp_path, record, out):
    assert cli("replay", record).code == 0
    assert cli.out.splitlines()[-1] == f"the same numbers as {record.partition('/')[0]}"
    assert cli.err.startswith(f"wrote {out}: svd, ")
    assert content(tmp_path / out) == content(tmp_path / record.partition("/")[0])
    cli("replay", record).refused(1, "--overwrite")
    assert cli("replay", record, "--overwrite", "-q").out == f"{out}\n"
    assert cli("replay", record, "-o", "other", "-q").out == "other\n"


def test_it_says_how_far_it_is_from_an_adapter_that_was_changed(cli, tmp_path):
    folder(tmp_path / "n", tensors(3))
    (tmp_path / "n/loramerge.json").write_bytes((tmp_path / "m/loramerge.json").read_bytes())
    assert cli("replay", "n").code == 0
    assert cli.out.splitlines()[-1].startswith("differs from n: 4 modules; error ")


def test_it_compares_with_nothing_where_the_original_is_gone_and_never_takes_its_place(cli, tmp_path):
    (tmp_path / "record.json").write_bytes((tmp_path / "m/loramerge.json").read_bytes())
    assert cli("replay", "record.json").code == 0
    assert "nothing to compare with" in cli.out
    assert cli("replay", "m", "-o", "m", "--overwrite").code == 1
    assert "which is read. Choose another -o" in cli.err


def test_other_versions_are_noted(cli, tmp_path):
    record = tmp_path / "m/loramerge.json"
    values = json.loads(record.read_text())
    values["versions"]["numpy"] = "1.0\x1b[31m"
    record.write_text(json.dumps(values))
    assert cli("replay", "m").code == 0
    assert "note: made with numpy 1.0\\x1b[31m: numbers may differ in their last digit\n" in cli.err


REFUSED = {
    "a record that is not there": (["x.json"], 1, ["x.json", "does not exist"]),
    "a source that was not merged": (["m", "--source", "z=a"], 2, ["z", "a, b"]),
    "no NAME=PATH": (["m", "--source", "zz"], 2, ["NAME=PATH", "folder"]),
    "no path": (["m", "--source", "a="], 2, ["NAME=PATH"]),
    "another adapter": (["m", "--source", "a=b"], 3, ["b is not the a that was merged", "SHA-256"]),
    "an output in a file": (["m", "-o", "m.safetensors/x"], 1, ["not a folder"]),
}


@pytest.mark.parametrize(("arguments", "code", "words"), REFUSED.values(), ids=REFUSED)
def test_refusals(cli, tmp_path, arguments, code, words):
    before = content(tmp_path)
    assert cli("replay", *arguments).code == code
    for word in words:
        assert word in cli.err
    assert content(tmp_path) == before


def test_a_source_that_is_gone_is_named_with_the_option_to_add(cli, tmp_path):
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    cli("replay", "m").refused(1, "The source a is neither", "--source a=PATH")
    assert cli("replay", "m", "--source", "a=elsewhere").code == 0
    (tmp_path / "there").mkdir()
    (tmp_path / "elsewhere").rename(tmp_path / "there/a")
    assert cli("replay", "m", "--source", "there", "--overwrite").code == 0
