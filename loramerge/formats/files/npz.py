"""NumPy's .npz from strangers: every size is checked against the file before anything is allocated."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from loramerge.adapters.adapter import Held
from loramerge.adapters.limits import NAME, too_long
from loramerge.arrays.backend import Array
from loramerge.errors import SourceError, printable
from loramerge.formats.files.safetensors import File, Stored
from loramerge.formats.files.stream import LIMIT, Stream

MOST = 4 * LIMIT  # of all arrays together, where they are packed
PIECE = 2**20  # that is asked for at once
HEAD = 10_000  # bytes that describe an array, as NumPy allows
READERS = {  # version -> how many bytes say its length, what reads it
    (1, 0): (2, np.lib.format.read_array_header_1_0),
    (2, 0): (4, np.lib.format.read_array_header_2_0),
}


def open_npz(path: Path, name: str) -> File:
    """The arrays of an adapter that NumPy or MLX wrote, as the tensors of a file; all are read at once.

    Raises:
        SourceError: as `read_npz`.
    """
    stored = Stored.at(path, name)
    tensors = {key: Held(array) for key, array in read_npz(path, name).items()}
    return File(name, path, stored.size, stored.read_into, {}, tensors)


def read_npz(path: Path, name: str) -> dict[str, Array]:
    """The arrays of a file by name. Nothing that it contains is run.

    Raises:
        SourceError: it cannot be read, is damaged, or is larger than any table of vectors.
    """
    stored = Stored.at(path, name)
    try:
        return _once(_arrays(Stream(stored)))
    except SourceError:
        raise
    except Exception as error:  # zip, zlib and NumPy each have their own
        raise SourceError(f"{printable(name)} cannot be read as .npz: {printable(error)}.") from None


def _arrays(stream: Any) -> Iterator[tuple[str, Array]]:
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > max(
            MOST, stream.seek(0, 2)
        ):  # no small file holds more
            raise ValueError(f"it has more than {MOST // 2**20} MiB of numbers")
        for entry in entries:
            if len(entry.filename) > NAME:
                raise ValueError(too_long(entry.filename))
            with archive.open(entry) as part:
                yield entry.filename.removesuffix(".npy"), _array(part, entry.file_size)


def _once(arrays: Iterable[tuple[str, Array]]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for key, array in arrays:
        if key in found:
            raise ValueError(f"it holds {printable(key, 80)} twice")
        found[key] = array
    return found


def _head(part: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the first axis runs fastest, and type."""
    version = np.lib.format.read_magic(part)
    if version not in READERS:
        raise ValueError("an array of it has another version than 1 or 2")
    width, reader = READERS[version]
    begin = part.read(width)
    if (length := int.from_bytes(begin, "little")) > HEAD:
        raise ValueError(f"the description of an array of it has {length} bytes, and {HEAD} is the limit")
    shape, turned, dtype = reader(io.BytesIO(begin + part.read(length)))
    return shape, turned, dtype


def _array(part: IO[bytes], size: int) -> Array:
    shape, turned, dtype = _head(part)
    if dtype.hasobject:
        raise ValueError("it holds objects, which are never unpickled")
    nbytes = math.prod(shape) * dtype.itemsize
    if not 0 <= nbytes <= size:
        raise ValueError("an array of it is larger than its part of the file")
    data = bytearray()
    while len(data) < nbytes and (piece := part.read(min(PIECE, nbytes - len(data)))):
        data += piece
    found = np.frombuffer(data, dtype, math.prod(shape))
    return found.reshape(shape[::-1]).T if turned else found.reshape(shape)
