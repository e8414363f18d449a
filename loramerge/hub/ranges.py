"""A part of a file on the Hub, by HTTP range: a header is some kilobytes of a file of gigabytes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from loramerge.errors import SourceError, printable, say
from loramerge.hub.failures import explained
from loramerge.hub.names import HubName

TIMEOUT = 20.0
HEAD = 100_000  # most headers are shorter, so that one request is enough
REQUESTS = 16  # at most, for numbers that are strewn over a file
MOST = 2 * 2**20  # bytes for them
AT_ONCE = 8  # requests
SPAN = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass
class Ranged:
    """A file at one commit; its size is known after the first read.

    Args:
        name: the repository.   commit: the 40 digits.   file: its path there.   head: its first bytes.
        parts: start -> bytes of what was read ahead.
    """

    name: HubName
    commit: str
    file: str
    size: int = 0
    head: bytes = b""
    parts: dict[int, bytes] = field(default_factory=dict)

    def read(self, start: int, count: int) -> bytes:
        """`count` bytes from `start` on.

        Raises:
            SourceError: as `ask`; or the server does not know ranges.
        """
        if start + count <= len(self.head):
            return self.head[start : start + count]
        for first, part in self.parts.items():
            if first <= start and start + count <= first + len(part):
                return part[start - first : start - first + count]
        return self._request(start, count)

    def read_ahead(self, places: Iterable[tuple[int, int]]) -> bool:
        """Read (start, count) places that will be asked for one by one, neighbours in one request.

        False, and nothing is read, if that would take more than `REQUESTS` requests or `MOST` bytes. Errors:
        as `read`.
        """
        spans: list[tuple[int, int]] = []
        for start, count in sorted(places):
            if start + count <= len(self.head):
                continue
            if spans and start - spans[-1][1] <= HEAD:
                spans[-1] = (spans[-1][0], max(spans[-1][1], start + count))
            else:
                spans.append((start, start + count))
        if len(spans) > REQUESTS or sum(stop - start for start, stop in spans) > MOST:
            return False
        with ThreadPoolExecutor(AT_ONCE, "loramerge-ranges") as pool:
            parts = pool.map(lambda span: self._request(span[0], span[1] - span[0]), spans)
            self.parts |= {start: part for (start, _), part in zip(spans, parts, strict=True)}
        return True

    def open(self) -> int:
        """Fetch the head; the size of the file."""
        self.head = self._request(0, HEAD)
        return self.size

    def _request(self, start: int, count: int) -> bytes:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        url = hf_hub_url(self.name.repo, self.file, revision=self.commit)
        headers = {
            **build_hf_headers(library_name="loramerge"),
            "Range": f"bytes={start}-{start + count - 1}",
            "Accept-Encoding": "identity",
        }
        with (
            explained(self.name, self.file),
            get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response,
        ):
            hf_raise_for_status(response)
            skipped, self.size = self._placed(response, start)
            found = _first(response.iter_bytes(), skipped + count)[skipped:]
        if len(found) != min(count, self.size - start):
            raise SourceError(
                f"{printable(self.file)} of {self.name.repo} did not arrive whole: run it again."
            )
        return found

    def _placed(self, response: Any, start: int) -> tuple[int, int]:
        """How many bytes come before the range, and the size of the file.

        A server that knows no ranges sends the file from its beginning; it is read no further than needed.
        """
        span = SPAN.fullmatch(response.headers.get("Content-Range", ""))
        if response.status_code == 206 and span and int(span[1]) == start:
            return 0, int(span[3])
        length = response.headers.get("Content-Length", "")
        if response.status_code == 200 and length.isdecimal():
            return start, int(length)
        raise SourceError(
            f"The server does not let a part of {printable(self.file)} of {self.name.repo} be read: add "
            f"{say('download', True)}."
        )


def _first(chunks: Iterable[bytes], count: int) -> bytes:
    """So many bytes, or all if there are fewer."""
    found = bytearray()
    for chunk in chunks:
        found += chunk
        if len(found) >= count:
            break
    return bytes(found[:count])
