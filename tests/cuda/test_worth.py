"""From how many units on `auto` takes the GPU is measured there, once, and can be said instead."""

import pytest

import loramerge as lm
from loramerge.cuda import find, worth
from loramerge.cuda.worth import NEVER, OVERRIDE, SIZES, crossing, least_units, measured
from loramerge.errors import UsageError
from tests.cuda.stand_in import installed
from tests.helpers.adapters import random_adapters


@pytest.fixture(autouse=True)
def _cupy(monkeypatch):
    monkeypatch.delenv(OVERRIDE, raising=False)
    with installed(monkeypatch):
        yield


def clock(monkeypatch, host, there):
    """Seconds of each size, on the host and on the GPU."""
    asked = []

    def seconds(work, size):
        asked.append(size)
        return (host if work is worth._work else there)[SIZES.index(size)]

    monkeypatch.setattr(worth, "_seconds", seconds)
    return asked


def test_the_first_size_from_which_on_the_gpu_wins(monkeypatch):
    clock(monkeypatch, host=[1, 2, 4, 8, 16], there=[3, 3, 3, 3, 3])

    assert find("auto").least == 32


def test_a_gpu_that_never_wins_gets_nothing(monkeypatch):
    clock(monkeypatch, host=[1, 1, 1, 1, 1], there=[3, 3, 3, 3, 3])

    assert find("auto").least == NEVER
    sources = random_adapters(0, (40, 40), {"q": (90, 100)})
    assert lm.combine(sources, "linear", device="auto").report.modules


@pytest.mark.parametrize("size", range(len(SIZES)))
def test_a_size_that_wins_by_chance_does_not_count(size):
    wins = [n != size for n in range(len(SIZES))]

    assert crossing(wins) == (NEVER if size == len(SIZES) - 1 else SIZES[size + 1])


def test_it_is_measured_once(monkeypatch):
    asked = clock(monkeypatch, host=[9] * 5, there=[3] * 5)

    assert [least_units(0), least_units(0)] == [8, 8]
    assert len(asked) == 2 * len(SIZES)


def test_the_probe_itself_runs(monkeypatch):
    monkeypatch.setattr(worth, "WIDTH", 16)

    assert measured(0) in (*SIZES, NEVER)


def test_a_number_can_be_said_instead(monkeypatch):
    asked = clock(monkeypatch, host=[9] * 5, there=[3] * 5)
    monkeypatch.setenv(OVERRIDE, "57")

    assert find("auto").least == 57
    assert not asked


@pytest.mark.parametrize("said", ["many", "-1", "3.5"])
def test_what_is_no_number_is_refused(monkeypatch, said):
    monkeypatch.setenv(OVERRIDE, said)

    with pytest.raises(UsageError, match=f"{OVERRIDE}='{said}' is no number of units"):
        lm.combine(random_adapters(0, (3, 4)), device="auto")
