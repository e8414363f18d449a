"""Inputs that once hung, crashed or were obeyed, small enough to keep: all must end in a sentence."""

import json
import pickle
import struct

CORPUS: dict[str, tuple[str, bytes]] = {  # what it did -> (its name, its bytes)
    "a chain of tuples, a segmentation fault": ("x.pt", b"\x80\x02)" + b"\x85" * 10**5 + b"."),
    "a memo of doubled stacks, a hang": ("x.pt", b"\x80\x02N" + b"2\x86" * 60 + b"."),
    "BYTEARRAY8 of 3 GB": ("x.pt", b"\x80\x05\x96" + struct.pack("<Q", 3 * 2**30) + b"."),
    "BUILD that alters a function": ("x.pt", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b."),
    "a global that runs": ("x.pt", b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R."),
    "protocol 5 with a frame that lies": ("x.pt", b"\x80\x05\x95" + struct.pack("<Q", 2**62) + b"N."),
    "a plain pickle of a dict": ("x.pt", pickle.dumps({"a": 1}, protocol=2)),
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
