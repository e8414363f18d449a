"""One bar over all downloads: every file that comes tells its bytes to whoever watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Watcher = Callable[[int, int], None]  # (bytes that will come, bytes that have come), both since the last call

_watchers: list[Watcher] = []


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
