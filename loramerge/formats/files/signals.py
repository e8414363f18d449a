"""Signals that end the work, kept until what must not be split is whole."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LONG = 5.0  # seconds after which a signal is not kept any more: a disk may hang


class Signals:
    """Within it, `hold` keeps every signal that Python handles, and `release` lets them act.

    Python raises what a handler raises wherever the main thread happens to be, so also between the two
    renames that replace a folder, or between a lock and the `try` that would let go of it. Other threads
    are not interrupted, and a signal that nobody handles ends the process as a kill does.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._kept: list[int] = []
        self._holding = False
        self._since = 0.0

    def __enter__(self) -> Signals:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def hold(self) -> None:
        """Keep signals from now on; again does nothing."""
        if self._holding or threading.current_thread() is not threading.main_thread():
            return
        for each in ENDING:
            handler = signal.getsignal(each)
            if callable(handler) and handler != self._came:
                self._before[each] = handler
                signal.signal(each, self._came)
        self._holding = True

    def release(self) -> None:
        """Let signals act again, and now those that were kept. Raises what their handlers do."""
        self._holding = False
        for each, handler in self._before.items():
            if signal.getsignal(each) == self._came:
                signal.signal(each, handler)
        kept, self._kept = self._kept, []
        for number in kept:
            self._before[number](number, None)

    def _came(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._holding and (not self._kept or now - self._since < LONG):
            self._since = self._since if self._kept else now
            self._kept.append(number)
            return
        self._before[number](number, frame)
