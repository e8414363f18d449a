"""One bar over all downloads: every file reports its bytes, and stops when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from loramerge.errors import LoramergeError

Watcher = Callable[[int, int], None]  # (bytes that will come, bytes that have come), both since the last call

# Not an argument of every verb: the sources of one merge are downloaded by several threads at once.
_watchers: list[Watcher] = []
_ending = threading.Event()


class Stopped(LoramergeError):
    """A download was ended, because another one has failed or the user wants no more."""


@contextmanager
def ended() -> Iterator[None]:
    """End every download that is under way in another thread, at its next piece, while the block runs."""
    _ending.set()
    try:
        yield
    finally:
        _ending.clear()


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Tell this watcher of every download, in whatever thread, while the block runs."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


class Counter:
    """What the client of the Hub takes for a bar; it shows nothing itself."""

    def __init__(self, *_: Any, total: float | None = None, initial: float = 0, **__: Any) -> None:
        self.total, self.n = total, initial
        _tell(int((total or 0) - initial), 0)

    def update(self, n: float | None = 1) -> None:
        if _ending.is_set():
            raise Stopped("The download was stopped.")
        self.n += n or 0
        _tell(0, int(n or 0))

    def update_transfer(self, n: float) -> None:
        """Bytes on the wire, which the client counts apart; files are counted as they are written."""

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None: ...
    def refresh(self, *_: Any, **__: Any) -> None: ...
    def set_description(self, *_: Any, **__: Any) -> None: ...
    def set_postfix_str(self, *_: Any, **__: Any) -> None: ...
    def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None: ...


def _tell(total: int, done: int) -> None:
    for watcher in tuple(_watchers):
        watcher(total, done)
