"""Reading safetensors files: the header at once, each tensor when it is asked for. POSIX only."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loramerge.adapters.adapter import Tensor
from loramerge.errors import IncompatibleError, SourceError, printable
from loramerge.formats.files.safetensors import header
from loramerge.formats.files.safetensors.dtypes import numpy_dtype
from loramerge.formats.files.strangers import HEAD, check_head, nearby

GGUF = b"GGUF"  # how llama.cpp's files begin
MAX_HEADER = 16 * 2**20  # some 100 000 tensors; the format itself allows 100 MB
Fill = Callable[[memoryview, int], None]  # fills a buffer with the bytes from a place on


@dataclass(frozen=True)
class Stored:
    """A file as it was when its header was read: its name for messages, its place, its size."""

    name: str
    path: Path
    size: int

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor for the time of one read, so that many adapters hold no descriptors."""
        with _descriptor(self.name, self.path) as fd:
            if os.fstat(fd).st_size != self.size:
                raise _changed(self.name, "was changed")
            yield fd

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with the bytes from `start` on."""
        with self.opened() as fd:
            _fill(self.name, fd, buffer, start)


@dataclass(frozen=True)
class Elsewhere(Stored):
    """A file that is not on this disk: `fetch` gets so many bytes of it, from a place on."""

    fetch: Callable[[int, int], bytes]

    def read_into(self, buffer: memoryview, start: int) -> None:
        buffer[:] = self.fetch(start, len(buffer))


@dataclass(frozen=True)
class TensorRef:
    """One tensor in a file: what the header says of it, and where its bytes lie."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int
    file: Stored

    def read(self) -> NDArray[Any]:
        """The tensor, in an array of its own. Any number of threads may read at once.

        Raises:
            SourceError: the file has changed in size since its header was read, or loramerge does
                not read the dtype (packed and complex types, 8-bit exponents).
        """
        dtype = numpy_dtype(self.dtype)
        if dtype is None:
            raise SourceError(
                f"The tensor '{printable(self.key)}' in {_shown(self.file.name)} has dtype"
                f" {self.dtype}, which loramerge does not read. Convert it to F32, F16 or BF16."
            )
        array = np.empty(self.shape, dtype)
        self.file.read_into(array.reshape(-1).view(np.uint8).data, self.start)
        return array


@dataclass(frozen=True)
class File(Stored):
    """A safetensors file: its metadata, and its tensors in the order of their bytes."""

    metadata: dict[str, str]
    tensors: Mapping[str, Tensor]

    def sha256(self) -> str:
        """The SHA-256 of the whole file, in hexadecimal."""
        with self.opened() as fd, open(fd, "rb", buffering=0, closefd=False) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def open_file(path: str | Path, name: str | None = None) -> File:
    """Read and check the header of a safetensors file; no tensor is read yet.

    `name` is what messages call the file; it is `path` itself unless given.

    Raises:
        SourceError: the file is absent, cut short or malformed in any way, or its header exceeds
            16 MiB.
        IncompatibleError: it is a GGUF file.
    """
    name, path = str(path) if name is None else name, Path(path)
    with _descriptor(name, path) as fd:
        stored = Stored(name, path, os.fstat(fd).st_size)
        return _checked(stored, lambda buffer, start: _fill(name, fd, buffer, start))


def open_elsewhere(name: str, path: Path, size: int, fetch: Callable[[int, int], bytes]) -> File:
    """The same for a file that is not here; `path` is where it would be. Errors also as `fetch` says."""
    stored = Elsewhere(name, path, size, fetch)
    return _checked(stored, stored.read_into)


def _checked(stored: Stored, fill: Fill) -> File:
    try:
        return _parsed(stored, fill)
    except header.Malformed as fault:
        raise SourceError(
            f"{_shown(stored.name)} cannot be read as safetensors: {fault}. Download or export it again."
        ) from None


def _parsed(stored: Stored, fill: Fill) -> File:
    data = 8 + _header_length(stored, fill)
    raw = bytearray(data - 8)
    fill(memoryview(raw), 8)
    metadata, entries = header.parse(bytes(raw), stored.size - data)
    tensors = {
        e.key: TensorRef(e.key, e.dtype, e.shape, data + e.start, e.stop - e.start, stored) for e in entries
    }
    return File(stored.name, stored.path, stored.size, metadata, tensors)


def _check_stranger(stored: Stored, fill: Fill) -> None:
    head = bytearray(min(HEAD, stored.size))
    fill(memoryview(head), 0)
    check_head(bytes(head), stored.name)


def _header_length(stored: Stored, fill: Fill) -> int:
    if stored.size < 8:
        raise header.Malformed(f"it has only {stored.size} bytes")
    raw = bytearray(8)
    fill(memoryview(raw), 0)
    _check_stranger(stored, fill)
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


def _fill(name: str, fd: int, buffer: memoryview, start: int) -> None:
    done = 0
    while done < len(buffer):  # one call reads 2 GiB at most
        count = os.preadv(fd, [buffer[done:]], start + done)
        if count == 0:
            raise _changed(name, "became shorter")
        done += count


@contextmanager
def _descriptor(name: str, path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe would wait for a writer
    except FileNotFoundError:
        raise SourceError(f"{_shown(name)} does not exist.{nearby(path) or ' Check the path.'}") from None
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise SourceError(f"{_shown(name)} is not a file. Name a .safetensors file.")
        yield fd
    except OSError as error:
        raise _unreadable(name, error) from error
    finally:
        os.close(fd)


def _unreadable(name: str, error: Exception) -> SourceError:
    reason = getattr(error, "strerror", None) or str(error)
    return SourceError(f"{_shown(name)} cannot be read: {reason}. Check the path and its rights.")


def _changed(name: str, how: str) -> SourceError:
    return SourceError(f"{_shown(name)} {how} while it was read. Wait until it is complete, then run again.")


def _shown(name: str) -> str:
    return printable(name, limit=1000)
