"""Reading and writing safetensors: strict with what others wrote, exact in what we write."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from loramerge.errors import LoramergeError, OutputError, SourceError
from loramerge.formats.files.safetensors import Writer, open_file

UNREAD = {"F4": 4, "F6_E2M3": 6, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "C64": 64}

# 'lora_A' is a 1 × 2 matrix in bfloat16: 1.0 is 3f80 and -2.0 is c000, low byte first. The header
# has 93 characters and three spaces, 0x60 bytes.
TINY = (
    b"\x60\0\0\0\0\0\0\0"
    b'{"__metadata__":{"format":"pt"},"lora_A":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}}'
    b"   "
    b"\x80\x3f\x00\xc0"
)


def entry(dtype="U8", shape=(1,), start=0, stop=1):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def packed(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ENTRY = b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'

REFUSED_BY_THE_LIBRARY_TOO = {
    "an empty file": b"",
    "half a length": b"\x02\0\0",
    "no header": b"\0" * 8,
    "a header longer than the file": b"\xff" * 8 + b"{}",
    "a header one byte too long": b"\x03" + b"\0" * 7 + b"{}",
    "not UTF-8": packed(b'{"\xff":1}'),
    "half a surrogate pair": packed(b'{"\\ud800":' + ENTRY + b"}", b"1"),
    "a byte order mark": packed(b"\xef\xbb\xbf{}"),
    "not JSON": packed(b"{'a': 1}"),
    "JSON and more": packed(b"{}{}"),
    "a list": packed(b"[]"),
    "a number": packed(b"1"),
    "NaN": packed(b'{"a":NaN}'),
    "a number of 5000 digits": packed(
        b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}', b"1"
    ),
    "deep nesting": packed(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "metadata of numbers": packed({"__metadata__": {"a": 1}}),
    "metadata in a list": packed({"__metadata__": ["a"]}),
    "metadata in metadata": packed({"__metadata__": {"a": {"b": "c"}}}),
    "an entry that is a number": packed({"a": 1}),
    "an entry that is null": packed({"a": None}),
    "no dtype": packed({"a": {"shape": [1], "data_offsets": [0, 1]}}, b"1"),
    "no shape": packed({"a": {"dtype": "U8", "data_offsets": [0, 1]}}, b"1"),
    "no offsets": packed({"a": {"dtype": "U8", "shape": [1]}}, b"1"),
    "an unknown dtype": packed({"a": entry("U9")}, b"1"),
    "a dtype in a list": packed({"a": entry(["U8"])}, b"1"),
    "a dimension that is true": packed({"a": entry(shape=[True])}, b"1"),
    "a dimension that is 1.0": packed({"a": entry(shape=[1.0])}, b"1"),
    "a dimension that is text": packed({"a": entry(shape=["1"])}, b"1"),
    "a negative dimension": packed({"a": entry(shape=[-1])}, b"1"),
    "two negative dimensions": packed({"a": entry(shape=[-1, -1])}, b"1"),
    "a product that overflows to 1": packed({"a": entry(shape=[2**63 + 1, 2**63 + 1])}, b"1"),
    "a product that overflows to 0": packed({"a": entry(shape=[2**32, 2**32], stop=0)}),
    "one offset": packed({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0]}}, b"1"),
    "three offsets": packed({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 1]}}, b"1"),
    "offsets that are true": packed({"a": entry(start=False, stop=True)}, b"1"),
    "offsets that are negative": packed({"a": entry(start=-1, stop=0)}, b"1"),
    "offsets in reverse": packed({"a": entry(start=1, stop=0)}, b"1"),
    "offsets that do not fit the shape": packed({"a": entry(shape=[2])}, b"1"),
    "offsets that do not fit the dtype": packed({"a": entry("F32")}, b"1"),
    "offsets past the end": packed({"a": entry(start=0, stop=1)}),
    "a hole at the start": packed({"a": entry(start=1, stop=2)}, b"12"),
    "a hole between": packed({"a": entry(), "b": entry(start=2, stop=3)}, b"123"),
    "an overlap": packed({"a": entry(shape=[2], stop=2), "b": entry(start=1, stop=2)}, b"12"),
    "two names for one place": packed({"a": entry(), "b": entry()}, b"1"),
    "bytes after the last tensor": packed({"a": entry()}, b"12"),
    "bytes and no tensor": packed({}, b"1"),
    "an empty tensor past the end": packed({"a": entry(shape=[0], start=5, stop=5)}),
    "half a byte": packed({"a": entry("F4", shape=[1])}, b"1"),
    "a field twice in an entry": packed(
        b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"
    ),
}

ACCEPTED_BY_THE_LIBRARY = {
    "a tensor twice": packed(b'{"a":' + ENTRY + b',"a":' + ENTRY + b"}", b"1"),
    "a tensor twice, once escaped": packed(b'{"a":' + ENTRY + b',"\\u0061":' + ENTRY + b"}", b"1"),
    "a metadata key twice": packed(b'{"__metadata__":{"a":"1","a":"2"}}'),
    "an entry without field names": packed({"a": ["U8", [1], [0, 1]]}, b"1"),
    "an empty tensor that NumPy cannot hold": packed({"a": entry(shape=[0, 2**63], stop=0)}),
    "65 dimensions": packed({"a": entry(shape=[1] * 65)}, b"1"),
    "a header over 16 MiB": packed(b"{}" + b" " * 2**24),
}


def saved(tmp_path, content):
    path = tmp_path / "given.safetensors"
    path.write_bytes(content)
    return path


def written(path, tensors, metadata=None, order=sorted):
    layout = {key: (dtype, array.shape) for key, (dtype, array) in tensors.items()}
    with Writer(path, layout, metadata or {}) as writer:
        for key in order(tensors):
            writer.write(key, tensors[key][1])
    return path


@pytest.mark.parametrize("content", REFUSED_BY_THE_LIBRARY_TOO.values(), ids=REFUSED_BY_THE_LIBRARY_TOO)
def test_what_the_library_refuses_is_refused_by_name(tmp_path, content):
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(content)
    with pytest.raises(SourceError, match=r"given\.safetensors cannot be read as safetensors"):
        open_file(saved(tmp_path, content))


@pytest.mark.parametrize("content", ACCEPTED_BY_THE_LIBRARY.values(), ids=ACCEPTED_BY_THE_LIBRARY)
def test_what_is_ambiguous_or_impossible_is_refused_though_the_library_accepts_it(tmp_path, content):
    safetensors.deserialize(content)
    with pytest.raises(SourceError, match=r"given\.safetensors cannot be read as safetensors"):
        open_file(saved(tmp_path, content))


def test_we_write_the_very_bytes_that_the_library_writes(tmp_path):
    only = {"é\n": np.arange(6, dtype="f4").reshape(2, 3), "a": np.ones(3, "f4")}
    path = written(tmp_path / "float", {k: ("F32", v) for k, v in only.items()}, {"é": '"'})
    assert path.read_bytes() == safetensors.numpy.save(only, {"é": '"'})


def test_a_tiny_file_has_exactly_these_bytes(tmp_path):
    array = np.array([[1, -2]], ml_dtypes.bfloat16)
    path = written(tmp_path / "tiny", {"lora_A": ("BF16", array)}, {"format": "pt"})
    assert path.read_bytes() == TINY
    assert open_file(path).tensors["lora_A"].read().tolist() == [[1, -2]]


def test_wider_types_lie_first_so_that_all_data_is_aligned(tmp_path):
    tensors = {"a": ("U8", np.ones(3, "u1")), "b": ("F32", np.ones(1, "f4"))}
    file = open_file(written(tmp_path / "x", tensors))
    assert list(file.tensors) == ["b", "a"]
    assert file.tensors["b"].start % 8 == 0


def test_the_order_of_writing_leaves_no_trace(tmp_path):
    kinds = {"F64": "f8", "F32": "f4", "F16": "f2", "I8": "i1"}
    tensors = {
        f"{name}{n}": (name, np.full((n, 2), n, kind)) for name, kind in kinds.items() for n in (0, 1, 3)
    }
    paths = [
        written(tmp_path / "forth", tensors),
        written(tmp_path / "back", tensors, order=lambda keys: sorted(keys, reverse=True)),
        written(tmp_path / "other", dict(reversed(tensors.items())), order=list),
    ]
    assert len({path.read_bytes() for path in paths}) == 1


def test_an_array_in_any_memory_order_is_written_by_its_values(tmp_path):
    array = np.arange(12, dtype="f4").reshape(3, 4).T[::2]
    path = written(tmp_path / "x", {"a": ("F32", array)})
    assert np.array_equal(open_file(path).tensors["a"].read(), array)


@pytest.mark.parametrize("dtype", UNREAD)
def test_other_dtypes_of_the_format_are_listed_but_not_read(tmp_path, dtype):
    size = 4 * UNREAD[dtype] // 8
    file = open_file(saved(tmp_path, packed({"a": entry(dtype, [4], 0, size)}, b"1" * size)))
    assert file.tensors["a"].nbytes == size
    with pytest.raises(SourceError, match=f"'a' in .*{dtype}, which loramerge does not read"):
        file.tensors["a"].read()


def test_tensors_come_in_the_order_of_their_bytes(tmp_path):
    header = {"a": entry(start=1, stop=2), "b": entry(), "empty": entry(shape=[0], stop=0)}
    file = open_file(saved(tmp_path, packed(header, b"12")))
    assert list(file.tensors) == ["empty", "b", "a"]
    assert [ref.read().tolist() for ref in file.tensors.values()] == [[], [49], [50]]


def test_a_file_that_is_cut_after_its_header_was_read_is_an_error(tmp_path):
    path = saved(tmp_path, TINY)
    file = open_file(path)
    path.write_bytes(TINY[:-1])
    with pytest.raises(SourceError, match=r"given\.safetensors was changed while it was read"):
        file.tensors["lora_A"].read()


def test_short_reads_are_continued_and_a_sudden_end_is_an_error(tmp_path, monkeypatch):
    ref = open_file(saved(tmp_path, TINY)).tensors["lora_A"]
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: whole(fd, [views[0][:1]], at))
    assert ref.read().tolist() == [[1, -2]]
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: 0)
    with pytest.raises(SourceError, match="became shorter while it was read"):
        ref.read()


def test_short_writes_are_continued(tmp_path, monkeypatch):
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: whole(fd, data[:1], at))
    array = np.array([[1, -2]], ml_dtypes.bfloat16)
    path = written(tmp_path / "tiny", {"lora_A": ("BF16", array)}, {"format": "pt"})
    assert path.read_bytes() == TINY


def test_what_is_not_a_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "absent", "nul\0"):
        with pytest.raises(SourceError, match="as given"):
            open_file(tmp_path / name, name="as given")


def test_names_from_files_cannot_write_to_the_terminal(tmp_path):
    path = saved(tmp_path, packed({"\x1b[31m": entry("F64")}, b"1"))
    with pytest.raises(SourceError) as caught:
        open_file(path)
    assert "\x1b" not in str(caught.value)


def test_a_file_that_is_let_go_leaves_no_descriptor_open(tmp_path):
    gc.collect()  # what other tests have left
    before = len(os.listdir("/proc/self/fd"))
    file = open_file(saved(tmp_path, TINY))
    file.tensors["lora_A"].read()
    del file
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_written_file_follows_the_umask(tmp_path):
    mask = os.umask(0o027)
    try:
        path = written(tmp_path / "x", {"a": ("U8", np.ones(1, "u1"))})
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640


def test_metadata_of_many_keys_is_written_in_their_order(tmp_path):
    names = [f"k{n:02}" for n in range(20)]
    one, other = ({name: "1" for name in order} for order in (names, reversed(names)))
    paths = [written(tmp_path / str(i), {}, metadata) for i, metadata in enumerate((one, other))]

    assert paths[0].read_bytes() == paths[1].read_bytes()
    with safetensors.safe_open(paths[0], framework="numpy") as file:
        assert file.metadata() == one


MISUSES = {
    "the reserved name": lambda path: Writer(path, {"__metadata__": ("U8", (1,))}, {}),
    "an unread dtype": lambda path: Writer(path, {"a": ("F4", (2,))}, {}),
    "a tensor left out": lambda path: Writer(path, {"a": ("U8", (1,))}, {}).close(),
    "an unknown tensor": lambda path: Writer(path, {}, {}).write("a", np.ones(1)),
    "another dtype": lambda path: Writer(path, {"a": ("U8", (1,))}, {}).write("a", np.ones(1)),
    "another byte order": lambda path: Writer(path, {"a": ("F32", (1,))}, {}).write("a", np.ones(1, ">f4")),
    "another shape": lambda path: Writer(path, {"a": ("F32", (1,))}, {}).write("a", np.ones((), "f4")),
}


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
def test_breaking_the_layout_is_the_callers_error(tmp_path, misuse):
    with pytest.raises(ValueError, match=r".") as caught:
        misuse(tmp_path / "x")
    assert not isinstance(caught.value, LoramergeError)


def test_a_tensor_is_written_once(tmp_path):
    writer = Writer(tmp_path / "x", {"a": ("U8", (1,))}, {})
    writer.write("a", np.ones(1, "u1"))
    with pytest.raises(ValueError, match="once"):
        writer.write("a", np.ones(1, "u1"))


def test_an_exception_while_writing_passes_through(tmp_path):
    with pytest.raises(KeyError), Writer(tmp_path / "x", {"a": ("U8", (1,))}, {}):
        raise KeyError


def test_a_file_that_exists_is_not_written_over(tmp_path):
    path = saved(tmp_path, b"precious")
    with pytest.raises(OutputError, match="OUT cannot be written: File exists"):
        Writer(path, {}, {}, name="OUT")
    assert path.read_bytes() == b"precious"


FULL = """
import resource, sys
import numpy as np
from pathlib import Path
from loramerge.errors import OutputError
from loramerge.formats.files.safetensors import Writer
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    with Writer(Path(sys.argv[1]), {"a": ("U8", (20_000,))}, {}, name="OUT") as writer:
        writer.write("a", np.ones(20_000, "u1"))
except OutputError as error:
    print(error)
"""


def test_a_full_disk_is_a_sentence(tmp_path):
    command = [sys.executable, "-c", FULL, str(tmp_path / "x")]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.startswith("There is no space left while writing OUT.")


def verdict(content):
    path = Path(f"/proc/self/fd/{os.memfd_create('fuzz')}")
    try:
        path.write_bytes(content)
        return [ref.read() for ref in open_file(path).tensors.values()]
    except SourceError:
        return None
    finally:
        os.close(int(path.name))


@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_refused(content):
    verdict(content)


@given(st.integers(8, len(TINY) - 1), st.binary(min_size=1, max_size=3), st.integers(0, 3))
def test_a_mutated_header_is_read_only_where_the_library_reads_it(at, patch, cut):
    text = TINY[8:at] + patch + TINY[at + cut : -4]
    content = packed(text, TINY[-4:])
    try:
        safetensors.deserialize(content)
    except safetensors.SafetensorError:
        assert verdict(content) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats() | st.sampled_from(["U8", "F4"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "a"]), inner)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), json_values))
def test_any_json_is_read_or_refused(header):
    verdict(packed(header, b"1"))
