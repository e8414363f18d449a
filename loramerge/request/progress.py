"""What a merge is doing, told while it does it: the stage, how much of it is done, and of how much."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, TypeVar

Tell = Callable[[str, int, int], object]
Item = TypeVar("Item")

PATIENCE = 1.0  # seconds before a bar is shown
OFTEN = 0.05  # seconds between two drawings of it
UNITS = {"reading": "adapter", "hashing": "adapter", "pushing": "file"}  # of the stages; else modules


class Stage:
    """One stage of the work, as a block: it begins with 0 of `total` and ends with what was done.

    Every thread may `step`; only that of the caller tells: at the start, while it waits, and at the end.

    >>> with Stage(print, "merging", 2) as stage:
    ...     stage.step()
    merging 0 2
    merging 1 2
    """

    def __init__(self, tell: Tell | None, name: str, total: int) -> None:
        self._tell, self._name, self._total, self._done = tell, name, total, 0

    def step(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count

    def tick(self) -> None:
        """Tell how far it is."""
        if self._tell is not None:
            self._tell(self._name, self._done, self._total)

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each of them a step."""
        for item in items:
            yield item
            self.step()
            self.tick()

    def __enter__(self) -> Self:
        self.tick()
        return self

    def __exit__(self, *_: object) -> None:
        self.tick()
        close = getattr(self._tell, "close", None)
        if close is not None:
            close()


class Bar:
    """A bar of tqdm, in a terminal or a notebook, for those who have waited a second.

    Args:
        patience: seconds from the first stage on.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience, self._first = patience, 0.0
        self._stage, self._bar = "", None  # type: tuple[str, Any]
        self._began = self._drawn = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.time()  # tqdm's clock
        self._first = self._first or now
        if stage != self._stage:
            self.close()
            self._stage, self._began = stage, now
        if self._bar is None and now - self._first > self._patience:
            self._bar = _bar(stage, total)
            self._bar.start_t = self._began
        if self._bar is not None and (done == total or now - self._drawn > OFTEN):
            self._bar.n, self._drawn = done, now
            self._bar.refresh()

    def close(self) -> None:
        """The stage has ended."""
        if self._bar is not None:
            self._bar.close()
        self._stage, self._bar = "", None


def _bar(stage: str, total: int) -> Any:
    with warnings.catch_warnings():  # of a notebook that lacks widgets: tqdm then draws with text
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm  # an import that a quick merge need not wait for

        return tqdm(total=total, desc=stage, unit=UNITS.get(stage, "module"), leave=False)
