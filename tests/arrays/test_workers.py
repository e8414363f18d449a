"""Threads that share work: in order, told while it lasts, and given up at once."""

import threading
import time

import pytest

from loramerge.arrays import workers as module
from loramerge.arrays.workers import Stopped, crew, go_on, workers

COUNTS = pytest.mark.parametrize("count", [1, 3])


@COUNTS
def test_results_come_in_the_order_of_the_items(count):
    with workers(count) as run:
        assert list(run(lambda n: time.sleep(0.01 * (5 - n)) or n, range(5))) == list(range(5))


@COUNTS
def test_the_thread_of_the_caller_only_waits_and_ticks(count):
    ticks, me = [], threading.current_thread()

    with workers(count, lambda: ticks.append(threading.current_thread())) as run:
        where = list(run(lambda _: time.sleep(0.25) or threading.current_thread(), range(2)))

    assert me not in where
    assert len(ticks) >= 3
    assert set(ticks) == {me}


@COUNTS
def test_an_error_is_that_of_the_first_item_and_ends_the_others(count):
    begun = []

    def work(n):
        begun.append(n)
        if n == 0:
            raise OSError("disk")
        while True:  # only to be ended
            time.sleep(0.01)
            go_on()

    start = time.monotonic()
    with pytest.raises(OSError, match="disk"), workers(count) as run:
        list(run(work, range(50)))

    assert time.monotonic() - start < 10, "on a machine that others use too; else it would never end"
    assert len(begun) <= count + 1


@COUNTS
def test_an_interrupt_waits_for_nobody(count):
    over, seen, begun = threading.Event(), [], threading.Semaphore(0)

    def work(n):
        begun.release()
        over.wait(30)  # as a long call of LAPACK, which looks at nothing
        try:
            go_on()
        except Stopped as error:
            seen.append(error)
            raise

    def interrupted():
        with workers(count) as run:
            run(work, range(count))
            for _ in range(count):
                begun.acquire()
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - start < module.GRACE + 9, "others use the machine too; the call takes 30 s"

    over.set()  # who was left behind does not go on either
    deadline = time.monotonic() + 5
    while len(seen) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(seen) == count


def test_whoever_has_no_crew_goes_on():
    go_on()


def test_a_crew_that_is_done_leaves_no_thread():
    before = threading.active_count()
    with crew(4) as made:
        assert made.submit(str, 1).result(lambda: None) == "1"
    assert threading.active_count() == before
