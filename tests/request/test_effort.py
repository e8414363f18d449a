"""How much of the machine a merge may use."""

import pytest

from loramerge.errors import UsageError
from loramerge.request.effort import Effort


def test_it_is_the_cpu_that_works():
    assert Effort().device == "cpu"
    assert Effort(device="cpu") == Effort()


def test_a_device_that_is_not_there_is_told_when_it_is_needed():
    with pytest.raises(UsageError, match="device='cuda:999': "):
        _ = Effort(device="cuda:999").gpu


def test_fewer_workers_are_on_the_same_device():
    assert Effort(4, 100.0, "cuda").holding(50.0) == Effort(2, 100.0, "cuda")
