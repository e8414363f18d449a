"""Files of strangers by grammar: headers and bodies of safetensors, pickles by instructions, npz, records.

By default a few hundred of each, always the same; `-m slow` runs 100 000 others each time, and says what came
of them, and their seed. `LORAMERGE_FUZZ_SEED=N` draws those of that seed again.
"""

import io
import json
import os
import pickle
import random
import struct
import zipfile
from itertools import product

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import loramerge as lm
from loramerge.formats.files.npz import read_npz
from loramerge.formats.files.opcodes import STEPS, WORDS
from loramerge.formats.files.pickles import open_pickle
from loramerge.formats.records import read_record
from loramerge.request.recipe_text import read as read_recipe
from tests.fuzz.walk import Outcomes, paths, put
from tests.helpers.files import folder as adapter_folder
from tests.helpers.files import tensors

SHAPES = st.lists(st.sampled_from([0, 1, 2, 4, 2**31, 2**63, -1]), max_size=4)
KEYS = st.sampled_from(
    [
        "base_model.model.q.lora_A.weight",
        "base_model.model.q.lora_B.weight",
        "lora_unet_q.lora_down.weight",
        "lora_unet_q.lora_up.weight",
        "lora_unet_q.alpha",
        "q.diff",
        "q.lokr_w1",
        "q.hada_w1_a",
        "",
        "\x1b",
        "a" * 5000,
    ]
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "U8", "F8_E4M3", "C64", "F4", "", 3]),
        "shape": SHAPES,
        "data_offsets": st.lists(st.sampled_from([0, 4, 8, 16, 32, 64, 2**40, -4]), min_size=1, max_size=3),
    }
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
HEADERS = st.dictionaries(KEYS, ENTRY | JSON, max_size=5)


@st.composite
def honest(draw):
    """A file whose header is true, of numbers that may be anything."""
    rank, size = draw(st.integers(0, 3)), draw(st.integers(1, 4))
    shapes = {"A": [rank, size], "B": [size, rank]}
    header, at = {}, 0
    for side, shape in shapes.items():
        nbytes = 4 * shape[0] * shape[1]
        key = f"base_model.model.q.lora_{side}.weight"
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    return safetensors(header, draw(st.binary(min_size=at, max_size=at)))


def safetensors(header, data):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ARGUMENTS = {
    "c": st.sampled_from(
        [
            b"torch._utils\n_rebuild_tensor_v2\n",
            b"torch._utils\n_rebuild_parameter\n",
            b"torch\nFloatStorage\n",
            b"collections\nOrderedDict\n",
            b"os\nsystem\n",
            b"a\n",
        ]
    ),
    "X": st.sampled_from([b"storage", b"0", b"cpu", b"a", b"state_dict", b"\xff"]).map(
        lambda word: struct.pack("<I", len(word)) + word
    ),
    "J": st.sampled_from([0, 1, 2, 4, -1, 2**31 - 1]).map(lambda number: struct.pack("<i", number)),
    "M": st.binary(min_size=2, max_size=2),
    "G": st.binary(min_size=8, max_size=8),
    "\x8a": st.binary(max_size=9).map(lambda raw: bytes([len(raw)]) + raw),
    "r": st.binary(min_size=4, max_size=4),
    "j": st.binary(min_size=4, max_size=4),
}
ONE_BYTE = st.sampled_from([b"\x00", b"\x01", b"\x02", b"\xff"])
TAKES_BYTE = {"K", "q", "h", "\x80"}
KNOWN = [code.decode("latin-1") for code in STEPS]


def instruction(code):
    argument = ARGUMENTS.get(code, ONE_BYTE if code in TAKES_BYTE else st.just(b""))
    return argument.map(lambda raw: code.encode("latin-1") + raw)


FAVOURITES = st.sampled_from([*KNOWN, *"((cccXXJJtttQRRu}]"]).flatmap(instruction)
ANY = st.sampled_from([code.decode("latin-1") for code in WORDS]).flatmap(instruction)
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00K\x04\x85K\x01\x85\x89}tR"
)
STATE = b"X\x0a\x00\x00\x00state_dict}X\x01\x00\x00\x00w" + TENSOR + b"s"
REPEATS = st.sampled_from([TENSOR, STATE, b"]q\x01", b"}q\x02", b"h\x01h\x01e", b"h\x02s", b"h\x01a", b"u"])
PIECES = st.lists(FAVOURITES | ANY | REPEATS, max_size=40).map(b"".join)
PROGRAMS = st.tuples(st.sampled_from([b"\x80\x02", b"\x80\x02}(X\x01\x00\x00\x00a"]), PIECES).map(
    lambda parts: b"".join(parts) + b"."
)


@st.composite
def spoilt(draw, whole):
    """A file with some bytes changed, left out or repeated."""
    raw = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(len(raw) - 1, 0)))
        piece = draw(st.binary(max_size=4))
        raw[at : at + draw(st.integers(0, 8))] = piece
    return bytes(raw)


def zipped(data):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/data/0", bytes(16))
    return made.getvalue()


def npz(shape, data):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {tuple(shape)}, }}\n".encode()
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data)
    return made.getvalue()


def merged(path):
    lm.combine([path], "svd", rank=1, alpha="rank", threads=1)


def adapters(folder):
    """Two small adapters in a folder, made once."""
    for number, name in enumerate("ab"):
        if not (folder / name).exists():
            adapter_folder(folder / name, tensors(number, shapes={"q": (4, 4), "v": (4, 4)}))
    return [folder / "a", folder / "b"]


MARK = b"M" * 64  # stands for the one of the merge
MASKS = {
    f"{name}/{path}": {"dtype": "U8", "shape": [4, 1], "data_offsets": [4 * number, 4 * number + 4]}
    for number, (name, path) in enumerate(product("ab", "qv"))
}


def restored(path):
    """The masks beside a merge, which is made once."""
    folder = path.parent / "m"
    if not folder.exists():
        lm.combine(adapters(path.parent), "mergevla", rank=1, out=folder, threads=1)
        (folder / "masks/masks.safetensors").rename(path.parent / "whole")
    start = (path.parent / "whole").read_bytes().partition(b'"merge\\": \\"')[2]
    place = folder / "masks/masks.safetensors"
    place.write_bytes(path.read_bytes().replace(MARK, start[: len(MARK)]))
    lm.restore(folder, "a", rank=1, threads=1)


def changed(whole, draw):
    """A table with other values in up to two of its fields, of those that it has at first."""
    for _ in range(draw(st.integers(0, 2))):
        way = draw(st.sampled_from(list(paths(whole))))
        whole = put(whole, way, draw(JSON | NUMBERS))
    return whole


NUMBERS = st.sampled_from([0, 4, 8, 12, 16, -4, 2**40, [0, 4], [4, 1], [4, 2], "U8", "F32", "a", "a/q"])


@st.composite
def masks(draw):
    """A file of masks, of which some part may be wrong."""
    said = changed({"tasks": {"a": 2, "b": 2}, "merge": MARK.decode()}, draw)
    header = changed(MASKS, draw)
    if draw(st.booleans()) and isinstance(header, dict):
        header = {key: value for key, value in header.items() if draw(st.integers(0, 7))}
    text = said if draw(st.booleans()) and isinstance(said, str) else json.dumps(said)
    entries = {"__metadata__": {"loramerge.masks": text}, **(header if isinstance(header, dict) else {})}
    return safetensors(entries, draw(st.binary(min_size=16, max_size=16) | st.binary(max_size=20)))


def replayed(path):
    """The record of a merge, which is made once, with the changes that stand in a file."""
    place = path.parent / "record"
    if not place.exists():
        made = path.parent / "n"
        lm.combine(adapters(path.parent), "svd", rank=1, out=made, threads=1)
        record = json.loads((made / "loramerge.json").read_text())
        place.write_text(json.dumps({key: value for key, value in record.items() if key != "report"}))
    record = json.loads(place.read_text())
    for number, value in json.loads(path.read_text()):
        ways = list(paths(record))
        record = put(record, ways[number % len(ways)], value)
    path.write_text(json.dumps(record))
    lm.replay(path, sources={name: path.parent / name for name in "ab"}, threads=1)


CHANGES = st.lists(st.tuples(st.integers(0, 999), JSON | NUMBERS), max_size=2)

YAML = st.lists(
    st.sampled_from(
        [
            "sources:",
            "\n- a",
            "\n- {source: a, weight: 1}",
            "\nmethod: svd",
            "\nparameters: {rank: 2}",
            "\n  ",
            "\n\t",
            ": ",
            "- ",
            "[",
            "]",
            "{",
            "}",
            "&a ",
            "*a",
            "!!python/object:os.system ",
            "!!binary ",
            "!<x> ",
            "? ",
            "<<: ",
            "|\n",
            ">\n",
            "'",
            '"',
            "#",
            "---\n",
            "%YAML 3.0\n",
            "1e999",
            "0o7",
            "2001-01-01",
            "\x00",
            "\ufeff",
            "\u2028",
        ]
    ),
    max_size=12,
).map(lambda parts: "".join(parts).encode())

KINDS = {  # what is written -> (its bytes, its name, what reads it)
    "headers": (
        st.tuples(HEADERS, st.binary(max_size=64)).map(lambda p: safetensors(*p)),
        "x.safetensors",
        merged,
    ),
    "bodies": (honest(), "x.safetensors", merged),
    "spoilt files": (spoilt(honest()), "x.safetensors", merged),
    "pickles": (PROGRAMS | spoilt(PROGRAMS), "x.pt", lambda path: open_pickle(path, "x")),
    "zipped pickles": (PROGRAMS.map(zipped), "x.bin", lambda path: open_pickle(path, "x")),
    "spoilt zips": (spoilt(PROGRAMS.map(zipped)), "x.bin", lambda path: open_pickle(path, "x")),
    "npz": (
        spoilt(st.tuples(SHAPES, st.binary(max_size=64)).map(lambda p: npz(*p))),
        "x.npz",
        lambda path: read_npz(path, "x"),
    ),
    "records": (JSON.map(lambda v: json.dumps(v).encode()), "x.json", lambda path: lm.replay(path)),
    "changed records": (CHANGES.map(lambda v: json.dumps(v).encode()), "x.json", replayed),
    "masks": (masks(), "x.safetensors", restored),
    "recipes": (YAML | st.binary(max_size=40), "x.yaml", read_recipe),
    "records in headers": (
        st.dictionaries(st.sampled_from(["loramerge"]), JSON).map(
            lambda v: safetensors({"__metadata__": {k: json.dumps(e) for k, e in v.items()}}, b"")
        ),
        "x.safetensors",
        read_record,
    ),
}


SELDOM_FINE = {
    "headers",
    "pickles",
    "zipped pickles",
    "records",
    "spoilt zips",
}  # it depends on what is drawn


def tried(tmp_path, kind, count, number=None):
    """What came of so many files; without a number to draw them by they are always the same."""
    files, name, read = KINDS[kind]
    found, path = Outcomes(), tmp_path / name

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=number is None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(files)
    def each(raw):
        path.write_bytes(raw)
        found.of(lambda: read(path), raw)

    again = "" if number is None else f", LORAMERGE_FUZZ_SEED={number}"
    try:
        (each if number is None else seed(number)(each))()
    finally:
        print(f"{kind}{again}: {sum(found.count.values())} executions,", dict(found.count))
    found.check()
    return found.count


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
def test_a_few_hundred(tmp_path, kind):
    count = tried(tmp_path, kind, 150)
    assert count["fine"] or kind in SELDOM_FINE, "what is right is reached, too"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_thousand(tmp_path, kind):
    given_seed = os.environ.get("LORAMERGE_FUZZ_SEED")
    number = random.SystemRandom().getrandbits(32) if given_seed is None else int(given_seed)
    tried(tmp_path, kind, -(-100_000 // len(KINDS)), number)


def test_a_seed_draws_the_same_again_and_another_draws_others(tmp_path, monkeypatch):
    drawn = []

    def refuse(path):
        drawn.append(path.read_bytes())
        raise lm.SourceError("as any")

    monkeypatch.setitem(KINDS, "bytes", (st.binary(), "x", refuse))
    runs = []
    for number in (1, 1, 2):
        drawn.clear()
        tried(tmp_path, "bytes", 20, number)
        runs.append([*drawn])
    assert runs[0] == runs[1] != runs[2]


def test_the_grammar_reaches_tensors(tmp_path):
    program = b"\x80\x02}(X\x01\x00\x00\x00a" + TENSOR + b"u."
    (tmp_path / "x.bin").write_bytes(zipped(program))
    assert open_pickle(tmp_path / "x.bin", "x").tensors["a"].read().tolist() == [0, 0, 0, 0]
    assert pickle.STOP == b"."
