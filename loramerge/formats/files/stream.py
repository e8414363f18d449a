"""A file as the readers of Python's library want it, which believe what it says of its sizes."""

from __future__ import annotations

import io

from loramerge.formats.files.safetensors import Stored

LIMIT = 64 * 2**20  # of one piece: a directory, or a description


class Stream(io.RawIOBase):  # read as zipfile reads: by `read`, `seek` and `tell` alone
    """Reads of a file no more than is there, and no piece beyond the limit."""

    def __init__(self, stored: Stored) -> None:
        self._stored, self._at = stored, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._at, self._stored.size)[whence]
        if base + offset < 0:
            raise OSError("a place before its begin")  # as a file does: zipfile then says what is none
        self._at = base + offset
        return self._at

    def read(self, count: int = -1) -> bytes:
        """So many bytes, or those that are left."""
        left = max(0, self._stored.size - self._at)
        size = left if count < 0 else min(count, left)
        if size > LIMIT:
            raise ValueError("one piece of it is larger than 64 MiB")
        buffer = bytearray(size)
        self._stored.read_into(memoryview(buffer), self._at)
        self._at += size
        return bytes(buffer)
