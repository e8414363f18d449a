"""Files of torch.save, read without torch and without running anything that they contain.

A pickle is a program. `opcodes` lets it build plain values and name the few functions that a state dict
needs, which are replaced by our own; any other name ends the reading. Numbers are read when asked.

    zip file      <name>/data.pkl, and <name>/data/<key> for each storage (torch 1.6 and later)
    older files   five pickles in a row, then every storage: its length (8 bytes), its numbers
"""

from __future__ import annotations

import json
import math
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.adapters.limits import NAME, too_long
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array
from loramerge.errors import IncompatibleError, SourceError, printable
from loramerge.formats.files.opcodes import Function, run
from loramerge.formats.files.safetensors import File, Stored
from loramerge.formats.files.strangers import HEAD, check_head
from loramerge.formats.files.stream import LIMIT, Stream

Starts = Mapping[str, tuple[int, int]]  # storage -> where its bytes begin, and how many there are
LEGACY = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
WRAPPERS = ("model_state_dict", "state_dict", "model", "weights", "module", "lora")  # around a state dict
DEEP = 4  # names of dicts in dicts that become one name
AGAIN = 8  # times the file's size: tensors may share numbers, as tied weights do, but not without end

STORAGES = {
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
INTEGERS = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}


class Kind(NamedTuple):
    """A storage class as the pickle names it."""

    dtype: str

    @property
    def numpy(self) -> np.dtype:
        return dtypes.FLOATS.get(self.dtype) or np.dtype(INTEGERS[self.dtype])


class Storage(NamedTuple):
    """Which numbers a tensor lies in."""

    kind: Kind
    key: str
    size: int


class Strided(NamedTuple):
    """A tensor as the pickle describes it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, eq=False, slots=True)
class PickledTensor:
    """A tensor of such a file; `start` is where the numbers of its storage begin."""

    strided: Strided
    start: int
    file: Stored

    @property
    def dtype(self) -> str:
        return self.strided.storage.kind.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.strided.shape

    @property
    def held(self) -> int:
        return _extent(self.strided) * self.strided.storage.kind.numpy.itemsize

    def read(self) -> Array:
        tensor, kind = self.strided, self.strided.storage.kind.numpy
        count = _extent(tensor)
        flat = np.empty(count, kind)
        self.file.read_into(flat.view(np.uint8).data, self.start + tensor.offset * kind.itemsize)
        strides = tuple(step * kind.itemsize for step in tensor.strides)
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides).copy()


def open_pickle(path: Path, name: str) -> File:
    """The tensors of a file of torch.save, by name.

    Raises:
        SourceError: absent, damaged, or its tensors lie outside of it.
        IncompatibleError: it holds something other than tensors by name, or wants to run code.
    """
    try:
        stored = Stored.at(path, name)
        stream: Any = Stream(stored)
        check_head(stream.read(HEAD), name)
        stream.seek(0)
        read = _zipped if zipfile.is_zipfile(stream) else _legacy
        stream.seek(0)
        values, starts = read(stream, stored.size)
    except (SourceError, IncompatibleError):
        raise
    except Forbidden as error:
        raise IncompatibleError(
            f"{printable(name)} is not a plain state dict: it names {printable(error)}, which is never run. "
            "Load it with the library that wrote it and save it as safetensors."
        ) from None
    except Exception as error:  # a damaged pickle may fail in any way
        raise SourceError(f"{printable(name)} is damaged, or not of torch.save: {_why(error)}.") from None
    tensors = _tensors(values, starts, stored)
    return File(stored.name, path, stored.size, stored.read_into, _said(values), tensors)


class Forbidden(Exception):
    """A name that a state dict has no need of."""


def _named(module: str, name: str) -> Any:
    if (module, name) in ALLOWED:
        return ALLOWED[module, name]
    if module == "torch" and name in STORAGES:
        return Kind(STORAGES[name])
    raise Forbidden(f"{module}.{name}")


def _persistent(pid: Any) -> Storage:
    _, kind, key, _, count = pid[:5]
    if not (type(kind) is Kind and isinstance(key, str) and _natural(count)):
        raise ValueError("a storage is not described as torch does")
    return Storage(kind, key, count)


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Strided:
    if type(storage) is not Storage or not _natural(offset, *shape, *strides) or len(shape) != len(strides):
        raise ValueError("a tensor is not described as torch does")
    tensor = Strided(storage, offset, tuple(shape), tuple(strides))
    if len(shape) > 8 or math.prod(shape) > storage.size or offset + _extent(tensor) > storage.size:
        raise ValueError("a tensor reaches beyond its storage")
    return tensor


def _parameter(tensor: Any, *_: Any) -> Strided:
    if type(tensor) is not Strided:
        raise ValueError("a parameter is not described as torch does")
    return tensor


ALLOWED: Mapping[tuple[str, str], Function] = {
    ("collections", "OrderedDict"): Function(lambda: OrderedDict()),
    ("torch._utils", "_rebuild_tensor_v2"): Function(_rebuild),
    ("torch._utils", "_rebuild_parameter"): Function(_parameter),
}


def _natural(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < 2**48 for value in values)


def _extent(tensor: Strided) -> int:
    """How many numbers of the storage a tensor spans, from its offset on."""
    if 0 in tensor.shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True))


def _zipped(stream: BinaryIO, _: int) -> tuple[Any, Starts]:
    """What the pickle in a zip file says, and where each storage begins."""
    with zipfile.ZipFile(stream) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.endswith("data.pkl")]
        packed = any(e.compress_type or e.file_size != e.compress_size for e in entries.values())
        if len(pickles) != 1 or len(entries) < len(archive.infolist()) or packed:
            raise ValueError("its parts are not those that torch writes")
        root = pickles[0].removesuffix("data.pkl")
        order = entries.get(f"{root}byteorder")
        if order and (order.file_size > 10 or archive.read(order) != b"little"):
            raise ValueError("its numbers are big-endian")
        if entries[pickles[0]].file_size > LIMIT:
            raise ValueError("its description is larger than 64 MiB")
        values, _ = run(archive.read(pickles[0]), 0, _named, _persistent)
        starts = {
            name.removeprefix(f"{root}data/"): (_begin(archive, entry), entry.file_size)
            for name, entry in entries.items()
            if name.startswith(f"{root}data/")
        }
    return values, starts


def _begin(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of a part begin: behind its own head, which must be one, and of this name."""
    with archive.open(entry):  # looks at the head
        stream: Any = archive.fp
        stream.seek(entry.header_offset + 26)
        head = int.from_bytes(stream.read(2), "little") + int.from_bytes(stream.read(2), "little")
    return entry.header_offset + 30 + head


def _legacy(stream: BinaryIO, size: int) -> tuple[Any, Starts]:
    """The same of a file older than torch 1.6."""
    data, at, begin = stream.read(min(size, LIMIT)), 0, []
    for _ in range(3):
        value, at = run(data, at, _named, _persistent)
        begin.append(value)
    magic, protocol, system = begin
    if magic != LEGACY or protocol != PROTOCOL or type(system) is not dict:
        raise ValueError("it does not begin as torch writes it")
    if not system.get("little_endian", True):
        raise ValueError("its numbers are big-endian")
    seen: dict[str, Storage] = {}

    def noting(pid: Any) -> Storage:
        found = _persistent(pid[1:] if len(pid) > 5 and pid[0] == "module" else pid)
        return seen.setdefault(found.key, found)

    values, at = run(data, at, _named, noting)
    keys, at = run(data, at, _named, _persistent)
    starts = {}
    for key in keys:
        stream.seek(at)
        said = stream.read(8)
        if len(said) == 8 and int.from_bytes(said, "little") != seen[key].size:
            raise ValueError("a storage is not as long as its description says")
        nbytes = seen[key].size * seen[key].kind.numpy.itemsize
        starts[key] = at + 8, nbytes
        at += 8 + nbytes
    return values, starts


def _tensors(values: Any, starts: Starts, file: Stored) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    whole = 0  # bytes
    for key, value in _items(values):
        if len(key) > NAME:
            raise SourceError(f"{printable(file.name)} is damaged: {too_long(key)}.")
        if type(value) is not Strided:
            raise IncompatibleError(
                f"{printable(file.name)} holds {printable(key)}, which is not a tensor: it is not an adapter."
            )
        storage = value.storage
        start, nbytes = starts.get(storage.key, (file.size, 0))
        needed = storage.size * storage.kind.numpy.itemsize
        if needed > nbytes or start + needed > file.size:
            raise SourceError(
                f"{printable(file.name)} is cut short: numbers of {printable(key)} are missing."
            )
        found[key] = PickledTensor(value, start, file)
        whole += math.prod(value.shape) * storage.kind.numpy.itemsize
        if whole > AGAIN * file.size:
            raise SourceError(
                f"{printable(file.name)} holds the same numbers under many names: its tensors would take "
                f"more than {AGAIN} times the size of the file."
            )
    if not found:
        raise IncompatibleError(
            f"{printable(file.name)} holds tensors without names, so it is not clear where they belong."
        )
    return found


def _items(values: Any) -> Iterator[tuple[str, Any]]:
    """Names and values; those of a list are named by their numbers, a state dict may be wrapped once."""
    if type(values) is list:
        return ((str(number), value) for number, value in enumerate(values))
    if not isinstance(values, dict):
        return iter(())
    inside = _wrapped(values)
    return iter(values.items()) if inside is values else _flat(inside, "", DEEP)


def _wrapped(values: dict[Any, Any]) -> dict[Any, Any]:
    """The state dict in a dict of a training script: what stands beside it is no tensor of the model."""
    held = [name for name in WRAPPERS if isinstance(values.get(name), dict) and _holds(values[name], DEEP)]
    beside = [key for key, value in values.items() if key not in held and type(value) is Strided]
    return values[held[0]] if len(held) == 1 and not beside else values


def _holds(value: Any, deep: int) -> bool:
    """Whether there is a tensor in it."""
    if isinstance(value, dict) and deep:
        return any(_holds(each, deep - 1) for each in value.values())
    return type(value) is Strided


def _flat(values: dict[str, Any], start: str, deep: int) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{start}{key}"
        if isinstance(value, dict) and deep and _holds(value, deep):
            yield from _flat(value, f"{name}.", deep - 1)
        else:
            yield name, value


def _said(values: Any) -> dict[str, str]:
    """The plain settings beside a state dict, as JSON: who wrote them knows what they mean."""
    if not isinstance(values, dict) or _wrapped(values) is values:
        return {}
    plain = {str(key): value for key, value in values.items() if not _holds(value, DEEP)}
    found = {}
    for key, value in plain.items():
        with suppress(TypeError, ValueError, RecursionError):
            found[key] = json.dumps(value, allow_nan=False)
    return found


def _why(error: Exception) -> str:
    return printable(error) or type(error).__name__
