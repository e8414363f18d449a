"""What was read of a file, and a sum of it: 24 bytes for each range, as adapters have very many."""

from __future__ import annotations

import threading
import zlib
from array import array
from collections.abc import Iterator

FEW = 1 << 15  # ranges that are kept as they come; of more, each is kept once
_one = threading.Lock()  # any number of threads read at once


class Spans:
    """Ranges of a file, each with the CRC-32 of the bytes that were found there.

    A CRC shows every accident. Who forges one has written the file, and may as well write it before.
    """

    def __init__(self) -> None:
        self._rows = array("Q")  # start, size, sum, one after another
        self._most = FEW

    def note(self, data: memoryview, start: int) -> None:
        """These bytes were read there."""
        row = array("Q", (start, len(data), zlib.crc32(data)))
        with _one:
            self._rows.extend(row)
            if len(self._rows) > 3 * self._most:
                once = sorted(set(self))
                self._rows = array("Q", (value for each in once for value in each))
                self._most = max(FEW, 2 * len(once))  # so that to keep n of them stays n log n

    def take(self, other: Spans) -> None:
        """All that the other has, too."""
        with _one:
            self._rows.extend(other._rows)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """(start, size, sum) of each."""
        rows = iter(self._rows)
        return zip(rows, rows, rows, strict=True)

    def __len__(self) -> int:
        return len(self._rows) // 3
