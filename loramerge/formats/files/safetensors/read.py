"""Reading safetensors files: the header at once, each tensor when it is asked for. POSIX only."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.adapters.original import open_original
from loramerge.arrays.backend import Array
from loramerge.errors import IncompatibleError, SourceError, printable, say
from loramerge.formats.files.safetensors import header
from loramerge.formats.files.safetensors.dtypes import numpy_dtype
from loramerge.formats.files.strangers import HEAD, check_binary, check_head

GGUF = b"GGUF"  # how llama.cpp's files begin
ZIP = b"PK\x03\x04"  # and those of torch.save and numpy.savez
MAX_HEADER = 16 * 2**20  # some 100 000 tensors; the format itself allows 100 MB
Fill = Callable[[memoryview, int], None]  # fills a buffer with the bytes from a place on


@dataclass(frozen=True, repr=False, eq=False)
class Stored:
    """Where bytes come from: a name for messages, a place, a size, and what fills a buffer from there."""

    name: str
    path: Path
    size: int
    read_into: Fill

    @classmethod
    def at(cls, path: Path, name: str) -> "Stored":
        """A file on this disk as it is now; it is read as long as it stays so. Errors as `open_original`."""
        original = open_original(path, name)
        return cls(name, path, original.size, original.read_into)


@dataclass(frozen=True)
class TensorRef:
    """One tensor in a file: what the header says of it, and where its bytes lie."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int
    file: Stored

    @property
    def held(self) -> int:
        return 0

    def read(self) -> Array:
        """The tensor, in an array of its own. Any number of threads may read at once.

        Raises:
            SourceError: the file has changed since its header was read, or loramerge does not read
                the dtype (packed and complex types, 8-bit exponents).
        """
        return self.part(0, self.shape)

    def part(self, start: int, shape: tuple[int, ...]) -> Array:
        """So many of its entries, from one on, in their order. Errors as for `read`."""
        dtype = numpy_dtype(self.dtype)
        if dtype is None:
            raise SourceError(
                f"The tensor '{printable(self.key)}' in {_shown(self.file.name)} has dtype"
                f" {self.dtype}, which loramerge does not read. Convert it to F32, F16 or BF16."
            )
        array = np.empty(shape, dtype)
        self.file.read_into(array.reshape(-1).view(np.uint8).data, self.start + start * dtype.itemsize)
        return array


@dataclass(frozen=True, repr=False)
class File(Stored):
    """A safetensors file: its metadata, and its tensors in the order of their bytes.

    Args:
        others: the files after the first, if the tensors lie in several.
    """

    metadata: dict[str, str]
    tensors: Mapping[str, Tensor]
    others: tuple[Path, ...] = ()


def open_file(path: str | Path, name: str | None = None) -> File:
    """Read and check the header of a safetensors file; no tensor is read yet.

    `name` is what messages call the file; it is `path` itself unless given.

    Raises:
        SourceError: the file is absent, cut short or malformed in any way, or its header exceeds
            16 MiB.
        IncompatibleError: it is a GGUF file.
    """
    name, path = str(path) if name is None else name, Path(path)
    return _checked(Stored.at(path, name))


def open_elsewhere(name: str, path: Path, size: int, fetch: Callable[[int, int], bytes]) -> File:
    """The same for a file that is not here; `path` is where it would be. Errors also as `fetch` says."""

    def fill(buffer: memoryview, start: int) -> None:
        buffer[:] = fetch(start, len(buffer))

    return _checked(Stored(name, path, size, fill))


def _checked(stored: Stored) -> File:
    try:
        return _parsed(stored)
    except header.Malformed as fault:
        raise SourceError(
            f"{_shown(stored.name)} cannot be read as safetensors: {fault}. {_remedy(stored.name)}"
        ) from None


def _parsed(stored: Stored) -> File:
    data = 8 + _header_length(stored)
    raw = bytearray(data - 8)
    stored.read_into(memoryview(raw), 8)
    metadata, entries = header.parse(bytes(raw), stored.size - data)
    tensors = {
        e.key: TensorRef(e.key, e.dtype, e.shape, data + e.start, e.stop - e.start, stored) for e in entries
    }
    return File(stored.name, stored.path, stored.size, stored.read_into, metadata, tensors)


def _remedy(name: str) -> str:
    """What helps: another kind of file is not mended by a new download."""
    end = os.path.splitext(name)[1]
    if end in ("", ".safetensors", ".sft"):
        return "Download or export it again."
    return f"Files that end in {_shown(end)} are not read: save its tensors as .safetensors."


def _check_stranger(stored: Stored) -> None:
    head = bytearray(min(HEAD, stored.size))
    stored.read_into(memoryview(head), 0)
    check_head(bytes(head), stored.name)
    check_binary(bytes(head), stored.name)


def _header_length(stored: Stored) -> int:
    if stored.size < 8:
        raise header.Malformed(f"it has only {stored.size} bytes")
    raw = bytearray(8)
    stored.read_into(memoryview(raw), 0)
    _check_stranger(stored)
    if raw.startswith(ZIP):
        raise SourceError(
            f"{_shown(stored.name)} was written by torch.save or NumPy, whatever its name says: call it .bin "
            f"and add {say('allow_pickle', True)}, or .npz if NumPy wrote it."
        )
    if raw.startswith(GGUF):
        raise IncompatibleError(
            f"{_shown(stored.name)} is a GGUF file of llama.cpp, which keeps factors under names and in an "
            "order of its own. Merge the PEFT adapters that such files were made from, and run "
            "convert_lora_to_gguf.py on the merge."
        )
    length = int.from_bytes(raw, "little")
    if length == 0 or length > stored.size - 8:
        raise header.Malformed(f"its header cannot have {length} bytes")
    if length > MAX_HEADER:
        raise header.Malformed(f"its header has {length} bytes, and 16 MiB is the limit")
    return length


def _shown(name: str) -> str:
    return printable(name, limit=1000)
