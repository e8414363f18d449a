"""Tables of vectors from strangers: read as NumPy writes them; a lie about sizes allocates nothing."""

import io
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from loramerge.errors import SourceError
from loramerge.formats.files.json import parse_object
from loramerge.formats.files.npz import MOST, PIECE, read_npz

ROOT = Path(__file__).parents[3]
ARRAYS = {
    "a": np.arange(6.0),
    "ints": np.arange(4),
    "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "none": np.zeros((0, 3)),
    "one": np.array(2.5),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_that_numpy_reads(tmp_path, save):
    save(tmp_path / "x.npz", **ARRAYS)
    found = read_npz(tmp_path / "x.npz", "x")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)


def header(shape, descr="<f8"):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def objects():
    stream = io.BytesIO()
    np.save(stream, np.array([{}], dtype=object), allow_pickle=True)
    return stream.getvalue()


HOSTILE = {
    "a shape of terabytes": header(f"({10**12},)"),
    "a shape beyond all": header(f"({10**30},)"),
    "a negative shape": header("(-4,)"),
    "a product that turns over": header(f"({2**32}, {2**32})"),
    "objects": objects(),
    "no array": b"text",
    "another version": b"\x93NUMPY\x03\x00" + header("(1,)")[8:],
    "half a header": header("(1,)")[:20],
    "an expression": header("(__import__('os').system('touch ran'),)"),
    "zeros beyond the limit": header(f"({MOST // 8 + 1},)"),
}
LONG = b"\x93NUMPY\x02\x00" + (10**8).to_bytes(4, "little") + b" " * 10**5


def test_a_long_description_is_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", LONG)
    with pytest.raises(SourceError, match="description of an array of it has 100000000 bytes"):
        read_npz(tmp_path / "x.npz", "x")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("a.npy", "a.npy"), ("a.npy", "a")])
def test_two_arrays_of_one_name_are_refused(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for name in names:
            archive.writestr(name, header("(0,)"))
    with pytest.raises(SourceError, match="holds a twice"):
        read_npz(tmp_path / "x.npz", "x")


TRIED = """
import resource, sys
from pathlib import Path
from loramerge.errors import SourceError
from loramerge.formats.files.npz import read_npz
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
for path in sys.argv[1:]:
    try:
        read_npz(Path(path), "x")
        print("read")
    except SourceError as error:
        print("refused")
"""


def test_no_bomb_goes_off(tmp_path):
    for name, data in HOSTILE.items():
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            if not name.startswith("zeros"):
                archive.writestr("a.npy", data)
                continue
            with archive.open("a.npy", "w") as file:
                file.write(data)
                for _ in range(MOST // PIECE + 1):
                    file.write(bytes(PIECE))
    paths = [str(tmp_path / f"{name}.npz") for name in HOSTILE]
    done = subprocess.run(
        [sys.executable, "-c", TRIED, *paths], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert dict(zip(HOSTILE, done.stdout.split(), strict=True)) == dict.fromkeys(HOSTILE, "refused"), (
        done.stderr
    )
    assert not (tmp_path / "ran").exists()
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != 2**30, "the limits are the child's"


JSON = {
    "a number of 400 digits": "9" * 400,
    "a number of a million digits": "9" * 10**6,
    "six million empty tables": "[" + "{}," * (6 * 10**6 // 2) + "{}]",
    "six million empty lists": "[" + "[]," * (6 * 10**6 // 2) + "[]]",
    "a nest": "[" * 10**6,
}


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
def test_json_that_would_take_far_more_memory_than_its_text_is_a_sentence(text):
    for given in (f'{{"a": {text}}}', f'{{"a": {text}}}'.encode()):
        with pytest.raises(SourceError, match="x is not valid JSON"):
            parse_object(given, "x")
