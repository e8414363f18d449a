"""Inputs that once hung, crashed or were obeyed, small enough to keep: all must end in a sentence."""

import io
import json
import pickle
import struct
import zipfile


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00K\x04\x85K\x01\x85\x89}tR"
)


def zipped(program, beside=b""):
    """A file of torch.save whose state dict has one tensor, and settings beside it."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        whole = b"\x80\x02}(" + text("state_dict") + b"}" + program + b"s" + beside + b"u."
        archive.writestr(zipfile.ZipInfo("x/data.pkl"), whole)
        archive.writestr(zipfile.ZipInfo("x/data/0"), bytes(16))
    return made.getvalue()


def repeated(holder, times, levels):
    """A list of values that each hold the one before several times: (levels of) few bytes, endless values."""
    made = b"](" + holder(None, times) + b"q\x01"
    for level in range(1, levels):
        made += holder(bytes([level]), times) + b"q" + bytes([level + 1])
    return made + b"e"


def table(before, times):
    inside = b"K\x01" if before is None else b"h" + before
    return b"}(" + b"".join(text(f"k{i}") + inside for i in range(times)) + b"u"


def listing(before, times):
    return b"](" + (b"K\x01" if before is None else b"h" + before) * times + b"e"


HEADER = json.dumps({"q" * 10**5: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()

CORPUS: dict[str, tuple[str, bytes]] = {  # what it did -> (its name, its bytes)
    "a chain of tuples, a segmentation fault": ("x.pt", b"\x80\x02)" + b"\x85" * 10**5 + b"."),
    "a memo of doubled stacks, a hang": ("x.pt", b"\x80\x02N" + b"2\x86" * 60 + b"."),
    "BYTEARRAY8 of 3 GB": ("x.pt", b"\x80\x05\x96" + struct.pack("<Q", 3 * 2**30) + b"."),
    "BUILD that alters a function": ("x.pt", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b."),
    "a global that runs": ("x.pt", b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R."),
    "protocol 5 with a frame that lies": ("x.pt", b"\x80\x05\x95" + struct.pack("<Q", 2**62) + b"N."),
    "a plain pickle of a dict": ("x.pt", pickle.dumps({"a": 1}, protocol=2)),
    "a list of lists of lists, doubled 60 times": (
        "x.bin",
        zipped(text("w") + TENSOR, text("about") + repeated(listing, 2, 60)),
    ),
    "a table of tables, 300 in each": (
        "x.bin",
        zipped(text("w") + TENSOR, text("model") + repeated(table, 300, 5)),
    ),
    "a list in itself": ("x.bin", zipped(text("w") + TENSOR, text("about") + b"]q\x01h\x01a")),
    "settings nested 10⁵ deep": (
        "x.bin",
        zipped(text("w") + TENSOR, text("about") + b"]" * 10**5 + b"a" * (10**5 - 1)),
    ),
    "a name of a million letters": ("x.bin", zipped(text("w" * 10**6) + TENSOR)),
    "a name of 10⁵ letters in a header": (
        "x.safetensors",
        struct.pack("<Q", len(HEADER)) + HEADER + bytes(4),
    ),
    "a card that begins and never ends": ("x.md", b"---" + b"\n" * 2**18),
    "a base of a million endings": (
        "x.base",
        b"org/m" + b"-hqq" * 10**6 + b"!",
    ),
    "a strength of 10⁴ digits": ("x.yaml", b"sources: [a]\nblocks: 'a=" + b"1" * 9900 + b"e'\n"),
    "a header that names nothing": ("x.safetensors", struct.pack("<Q", 2) + b"{}"),
    "a header of 2⁶² bytes": ("x.safetensors", struct.pack("<Q", 2**62) + b"{}"),
    "a header nested 10⁵ deep": (
        "x.safetensors",
        struct.pack("<Q", 2 * 10**5) + b"[" * 10**5 + b"]" * 10**5,
    ),
    "a number of 10⁴ digits as a shape": (
        "x.safetensors",
        (lambda h: struct.pack("<Q", len(h)) + h)(
            b'{"q.lora_A.weight":{"dtype":"F32","shape":[' + b"9" * 10**4 + b'],"data_offsets":[0,4]}}'
        ),
    ),
    "a record of a huge weight": (
        "x.json",
        json.dumps({"sources": [{"name": "a", "sha256": {"a": "0" * 64}, "weight": 1e400}]}).encode(),
    ),
    "a record whose sources are a number": ("x.json", b'{"sources": 5, "method": {"name": "svd"}}'),
    "a recipe with an alias bomb": ("x.yaml", b"a: &a [x,x]\nb: &b [*a,*a]\nsources: [*b,*b]\n"),
    "a recipe with a Python tag": ("x.yaml", b"sources: !!python/object/apply:os.system ['true']\n"),
    "a recipe with !!bool x": ("x.yaml", b"sources: [a]\nextras: !!bool x\n"),
    "a recipe nested 10⁵ deep": ("x.yaml", b"[" * 10**5),
}
