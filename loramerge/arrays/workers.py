"""Threads that share the work and stop at once: an interrupt does not wait for their batches.

The caller's thread only waits, so an interrupt always reaches it. The others give up at their next step. A
thread inside a long call of LAPACK is left behind and ends by itself.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from loramerge.arrays.backend import finish

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")
Job = tuple["Promise[Any]", Callable[[Any], Any], Any]
Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]

BEAT = 0.1  # seconds between two ticks
GRACE = 0.4  # seconds for work to come to its next step, before files that it writes are taken away
_own = threading.local()


class Stopped(BaseException):
    """Nobody wants this work any more. No code may take it for a failure, so it is no `Exception`."""


def go_on() -> None:
    """Call it between two steps of long work, and before writing. Raises Stopped."""
    stop = getattr(_own, "stop", None)
    if stop is not None and stop.is_set():
        raise Stopped


class Promise(Generic[Result]):
    """What a thread will give: a result, or what it raised. It is given once.

    A `Future` of `concurrent.futures` does more, and brings `logging`: 2 % of the start of a small merge.
    """

    def __init__(self) -> None:
        self._given = threading.Event()

    def give(self, result: Result) -> None:
        self._result: Result = result
        self._error: BaseException | None = None
        self._given.set()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._given.set()

    def result(self, tick: Callable[[], None]) -> Result:
        """Waits for it, and calls `tick` meanwhile. Raises what the thread raised."""
        while not self._given.wait(BEAT):
            tick()
        tick()
        if self._error is not None:
            raise self._error
        return self._result


def beside(function: Callable[[], Result]) -> Callable[[], Result]:
    """Begin it in a thread that stops with this one. The call given back waits for its result."""
    promise: Promise[Result] = Promise()
    stop = getattr(_own, "stop", None)

    def work() -> None:
        _own.stop = stop
        try:
            promise.give(function())
        except BaseException as error:
            promise.fail(error)

    threading.Thread(target=work, daemon=True).start()
    return lambda: promise.result(go_on)


class Crew:
    """Some threads and the jobs that they take one by one; `tick` is called while somebody waits.

    Each thread calls `begin` before a job, and its work on a GPU is done before the result is given on.
    """

    def __init__(self, count: int, tick: Callable[[], None], begin: Callable[[], None]) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._stop, self._tick, self._begin = threading.Event(), tick, begin
        # daemons: the end of the program need not wait for them either
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The results in the order of the items. All items are taken on now."""
        return self._results(deque(self.submit(function, item) for item in items))

    def submit(self, function: Callable[[Item], Result], item: Item) -> Promise[Result]:
        promise: Promise[Result] = Promise()
        self._jobs.put((promise, function, item))
        return promise

    def end(self) -> None:
        """No more jobs will come; those taken on are finished."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """Give everything up."""
        self._stop.set()
        for _ in self._threads:
            self._jobs.put(None)
        until = time.monotonic() + GRACE
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))

    def _results(self, promises: deque[Promise[Result]]) -> Iterator[Result]:
        while promises:
            yield promises.popleft().result(self._tick)  # no result is kept longer than needed

    def _work(self) -> None:
        _own.stop = self._stop
        while (job := self._jobs.get()) is not None:
            promise, function, item = job
            try:
                go_on()
                self._begin()
                result = function(item)
                finish()
                promise.give(result)
                del result
            except BaseException as error:
                promise.fail(error)
            del job, promise, function, item


@contextmanager
def crew(
    count: int, tick: Callable[[], None] = lambda: None, begin: Callable[[], None] = lambda: None
) -> Iterator[Crew]:
    """A crew that ends with the block, and gives up if the block fails or is interrupted."""
    made = Crew(count, tick, begin)
    try:
        yield made
    except BaseException:
        made.stop()
        raise
    made.end()


@contextmanager
def workers(
    count: int, tick: Callable[[], None] = lambda: None, begin: Callable[[], None] = lambda: None
) -> Iterator[Run]:
    """A ``map`` over `count` threads, each with one BLAS thread; BLAS is restored afterwards.

    More BLAS threads per worker were measured slower: skinny products wait at barriers.
    The results come in the order of the items, so they do not depend on `count`.
    """
    with _blas().limit(limits=1, user_api="blas"), crew(count, tick, begin) as made:
        yield made.map


@cache
def _blas() -> ThreadpoolController:
    """What sets the threads of NumPy's BLAS. To find it takes milliseconds, so it is found once."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
