"""How much of the machine a merge may use."""

import pytest

from loramerge.errors import UsageError
from loramerge.request.effort import Effort


def test_it_is_the_cpu_that_works():
    assert Effort().device == "cpu"
    assert Effort(device="cpu") == Effort()


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "auto", "CPU", ""])
def test_another_device_is_refused_in_a_sentence(device):
    with pytest.raises(UsageError, match=f"device='{device}': this version of loramerge uses no GPU"):
        Effort(device=device)


def test_fewer_workers_are_on_the_same_device():
    assert Effort(threads=4, memory=100.0).holding(50.0) == Effort(threads=2, memory=100.0, device="cpu")
