"""A safetensors file copied with some tensors changed: every other byte is the same as before."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from threading import Lock

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.errors import VerificationError, printable
from loramerge.formats.files.atomic import writing
from loramerge.formats.files.safetensors import File, TensorRef, open_file
from loramerge.formats.files.safetensors.dtypes import BITS

BLOCK = 1 << 23
Shape = tuple[int, ...]


class Copy:
    """A copy in progress, in which some tensors are changed and some are new.

    The tensors stay in their order, new ones come last; the header is the same where no size changes.

    Args:
        file: the original.   out: the copy, which must not exist.
        changed: name -> (dtype, shape) of what is made anew.   also: what is made together with these.
    """

    def __init__(
        self, file: File, out: Path, changed: Mapping[str, tuple[str, Shape]], also: Iterable[str] = ()
    ) -> None:
        self.file, self.out, self.changed, self.also = file, out, changed, frozenset(also)
        self.layout = {key: (t.dtype, t.shape) for key, t in file.tensors.items()} | dict(changed)
        self._header, self._starts = _header(self.layout, file.metadata)
        self._marks: dict[str, tuple[int, int]] = {}
        self._lock = Lock()

    def fill(self, make: Callable[[str], Mapping[str, Array]], run: Callable[..., Iterable[object]]) -> None:
        """Write everything: `make` gives the tensors that belong to a changed one, by `run`, a `map`."""
        with writing(self.out):
            fd = os.open(self.out, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            self._write(fd, self._header, 0)
            self._keep(fd)

            def put(name: str) -> None:
                for key, array in make(name).items():
                    self._put(fd, key, array)

            for _ in run(put, list(self.changed)):
                pass
            with writing(self.out):
                os.fsync(fd)
        finally:
            os.close(fd)

    def _put(self, fd: int, key: str, array: Array) -> None:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        if (len(data), array.shape) != (nbytes(*self.layout[key]), self.layout[key][1]):
            raise ValueError(f"{key}: {array.dtype}{array.shape} given, {self.layout[key]} wanted")
        self._write(fd, data, self._starts[key])
        with self._lock:
            self._marks[key] = _mark(data)

    def _write(self, fd: int, data: bytes | memoryview, start: int) -> None:
        view, done = memoryview(data), 0
        with writing(self.out):
            while done < len(view):  # one call writes 2 GiB at most
                done += os.pwrite(fd, view[done:], start + done)

    def _keep(self, fd: int) -> None:
        """Copy what is not changed; neighbours in one piece."""
        pieces: list[tuple[int, int, int]] = []  # from, to, count
        for key, tensor in self.file.tensors.items():
            assert isinstance(tensor, TensorRef)
            if key in self.changed or key in self.also or not tensor.nbytes:
                continue
            start = self._starts[key]
            if (
                pieces
                and pieces[-1][0] + pieces[-1][2] == tensor.start
                and pieces[-1][1] + pieces[-1][2] == start
            ):
                pieces[-1] = (*pieces[-1][:2], pieces[-1][2] + tensor.nbytes)
            else:
                pieces.append((tensor.start, start, tensor.nbytes))
        buffer = memoryview(bytearray(min(BLOCK, max((count for *_, count in pieces), default=0))))
        for start, place, count in pieces:
            for done in range(0, count, BLOCK):
                block = buffer[: min(BLOCK, count - done)]
                self.file.read_into(block, start + done)  # of what was opened, whatever lies there now
                self._write(fd, block, place + done)

    def check(self) -> None:
        """What was written is what was made.

        Raises:
            VerificationError: a tensor was read back with other values.
        """
        tensors = open_file(self.out).tensors
        room = np.empty(max((nbytes(*self.layout[key]) for key in self._marks), default=0), np.uint8)
        for key, mark in self._marks.items():
            tensor = tensors[key]
            assert isinstance(tensor, TensorRef)
            data = room[: tensor.nbytes].data
            tensor.file.read_into(data, tensor.start)
            if _mark(data) != mark:
                raise VerificationError(f"{printable(key)} was read back with other values. Run it again.")


def _mark(data: memoryview) -> tuple[int, int]:
    """The sum of the words of a tensor, and its last bytes: a wrong or missing block changes them."""
    whole = len(data) // 8 * 8
    words = np.frombuffer(data[:whole], np.uint64)
    return int(words.sum(dtype=np.uint64)), hash(bytes(data[whole:]))


def nbytes(dtype: str, shape: Shape) -> int:
    """The bytes of a tensor."""
    return prod(shape) * BITS[dtype] // 8


def _header(
    layout: Mapping[str, tuple[str, Shape]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """(the bytes before the data, name -> where its bytes lie)."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    starts, end = {}, 0
    for key, (dtype, shape) in layout.items():
        starts[key], size = end, nbytes(dtype, shape)
        entries[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {key: len(head) + start for key, start in starts.items()}
