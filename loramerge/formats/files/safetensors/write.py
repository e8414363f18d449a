"""Writing a safetensors file tensor by tensor, in any order, to the same bytes. POSIX only."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.formats.files.atomic import writing
from loramerge.formats.files.safetensors.dtypes import BITS, numpy_dtype

Layout = Mapping[str, tuple[str, tuple[int, ...]]]

_RANK = {name: rank for rank, name in enumerate(BITS)}


class Writer:
    """A new safetensors file, whose layout is known before its tensors are.

    `layout` gives each tensor's dtype and shape. The widest dtypes lie first and keys are sorted
    within a dtype, so that all data is aligned; the bytes are those of the `safetensors` library.
    `metadata` is written in the order of its keys; the library writes several in random order, so
    that only a file with one key at most is the same when it writes it. `name` is what messages
    call the file.

    The file must not exist; its mode follows the umask. As a context manager the Writer closes
    at the end, and after an exception it only lets go of the file.

    Raises:
        OutputError: the disk refuses (full, read-only, file exists).
        ValueError: the caller breaks the layout.
    """

    def __init__(
        self, path: Path, layout: Layout, metadata: Mapping[str, str], *, name: str | None = None
    ) -> None:
        if "__metadata__" in layout:
            raise ValueError("no tensor may be named __metadata__")
        self._layout = _ordered(layout)
        self._names = dict(layout)
        self._offsets = _offsets(self._layout)
        self._header = _header(layout, metadata, self._offsets)
        self._starts = {key: len(self._header) + at for key, (at, _) in self._offsets.items()}
        self._written: set[str] = set()
        self._name = str(path) if name is None else name
        with writing(self._name):
            self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            self._put(memoryview(self._header), 0)
        except BaseException:
            self._release()
            raise

    def write(self, key: str, array: Array) -> None:
        """Put one tensor in its place; several threads may write different tensors at once."""
        wanted = self._layout.get(key)
        if wanted != (array.dtype, array.shape) or key in self._written:
            raise ValueError(f"{key}: {array.dtype}{array.shape} given, {wanted} wanted once")
        self._put(_bytes(array), self._starts[key])
        self._written.add(key)

    def write_pieces(self, key: str, pieces: Iterable[Array]) -> None:
        """The same of a tensor whose entries (n,) come in their order, some at a time."""
        dtype, shape = self._layout[key]
        at, count = self._starts[key], 0
        for piece in pieces:
            if piece.dtype != dtype or key in self._written:
                raise ValueError(f"{key}: {piece.dtype} given, {dtype} wanted once")
            self._put(_bytes(piece), at + count * dtype.itemsize)
            count += piece.size
        if count != math.prod(shape):
            raise ValueError(f"{key}: {count} entries given, {math.prod(shape)} wanted")
        self._written.add(key)

    def amend(self, metadata: Mapping[str, str]) -> None:
        """Replace the metadata by other metadata of the same length (digits that are known late).

        Raises:
            ValueError: the length differs.
        """
        header = _header(self._names, metadata, self._offsets)
        if len(header) != len(self._header):
            raise ValueError(f"a header of {len(header)} bytes cannot replace one of {len(self._header)}")
        self._put(memoryview(header), 0)

    def close(self) -> None:
        """Make the file last: check that every tensor was written, flush it to the disk. Once is enough."""
        if self._fd < 0:
            return
        try:
            missing = self._layout.keys() - self._written
            if missing:
                raise ValueError(f"{len(missing)} tensors not written, such as {min(missing)}")
            with writing(self._name):
                os.fsync(self._fd)
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._release()

    def _put(self, data: memoryview, start: int) -> None:
        done = 0
        with writing(self._name):
            while done < len(data):  # one call writes 2 GiB at most
                done += os.pwrite(self._fd, data[done:], start + done)

    def _release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _bytes(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def file_size(layout: Layout, metadata: Mapping[str, str]) -> int:
    """The bytes of a file before it is written."""
    offsets = _offsets(_ordered(layout))
    return len(_header(layout, metadata, offsets)) + max((stop for _, stop in offsets.values()), default=0)


def header_size(layout: Layout, metadata: Mapping[str, str]) -> int:
    """The bytes before the tensors of a file."""
    return len(_header(layout, metadata, _offsets(_ordered(layout))))


def _ordered(layout: Layout) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """In the order of the file."""
    order = sorted(layout, key=lambda key: (-_RANK[layout[key][0]], key))
    return {key: (_dtype(layout[key][0]), tuple(layout[key][1])) for key in order}


def _offsets(ordered: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> dict[str, tuple[int, int]]:
    offsets, end = {}, 0
    for key, (dtype, shape) in ordered.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        offsets[key] = (start, end)
    return offsets


def _dtype(name: str) -> np.dtype[Any]:
    dtype = numpy_dtype(name)
    if dtype is None:
        raise ValueError(f"{name} is not a dtype that loramerge writes")
    return dtype


def _header(layout: Layout, metadata: Mapping[str, str], offsets: Mapping[str, tuple[int, int]]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    for key, span in offsets.items():
        dtype, shape = layout[key]
        entries[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
