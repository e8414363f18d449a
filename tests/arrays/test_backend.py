"""What the array layer needs beside the functions of a namespace, on the host and on a device."""

import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from loramerge.arrays.backend import from_torch, host, like, namespace, positions, ratio, to_torch
from tests.helpers.device import AWAY, Away, copies, down, up

PLACES = pytest.mark.parametrize("move", [lambda value: value, up], ids=["host", "device"])


def test_an_array_says_whose_functions_work_on_it(monkeypatch):
    class Silent:
        """As CuPy's arrays, which do not say it themselves."""

    cupy = SimpleNamespace(ndarray=Silent)
    monkeypatch.setitem(sys.modules, "cupy", cupy)

    assert namespace(np.zeros(2)) is np
    assert namespace(np.float64(1)) is np
    assert namespace([1.0, 2.0]) is np
    assert namespace(AWAY.zeros(2)) is AWAY
    assert namespace(Silent()) is cupy


@PLACES
def test_numbers_go_up_and_down(move):
    there = move(np.arange(3.0))

    assert isinstance(host(there), np.ndarray)
    assert type(like(np.ones(2), there)) is type(there)
    np.testing.assert_array_equal(down(like(host(there), there)), np.arange(3.0))


def test_on_the_host_nothing_is_copied():
    array = np.arange(3.0)

    assert host(array) is array
    assert like(array, array) is array


@PLACES
def test_positions_are_numbers_of_python(move):
    found = positions(move(np.array([False, True, True])))

    assert found == [1, 2]
    assert {type(n) for n in found} == {int}


@PLACES
def test_a_ratio_is_zero_where_it_is_not_asked_for(move):
    part, whole = np.array([[1.0], [3.0]]), np.array([[4.0, 0.0], [np.inf, 2.0]])

    found = down(ratio(move(part), move(whole), move(whole > 0) & move(whole < np.inf)))

    np.testing.assert_array_equal(found, [[0.25, 0.0], [0.0, 1.5]])
    assert ratio(np.float32(1), np.ones(1, np.float32), np.ones(1, bool)).dtype == np.float32


class TestTheDeviceOfTheTests:
    """It must refuse what CuPy refuses, or the tests on it prove nothing."""

    there, here = AWAY.asarray([1.0, 2.0]), np.array([1.0, 2.0])

    @pytest.mark.parametrize(
        "mix",
        [
            lambda a, b: a + b,
            lambda a, b: b + a,
            lambda a, b: b @ a,
            lambda a, b: a == b,
            lambda a, b: AWAY.maximum(a, b),
            lambda a, b: AWAY.concatenate([a, b]),
            lambda a, b: a.__setitem__(slice(None), b),
            lambda a, b: b.__setitem__(slice(None), a),
            lambda a, b: np.asarray(a),
            lambda a, b: np.sum(a),
            lambda a, b: np.linalg.norm(a),
            lambda a, b: np.stack([b, a]),
            lambda a, b: np.add(b, a),
            lambda a, b: a.max(initial=0),
            lambda a, b: AWAY.sum(a, where=a > 1),
        ],
    )
    def test_it_refuses_to_mix_or_to_leave(self, mix):
        with pytest.raises(TypeError):
            mix(AWAY.asarray(self.there), self.here.copy())

    def test_it_takes_numbers_and_positions(self):
        assert isinstance(2 * self.there + np.float64(1) * self.there, Away)
        assert float(self.there[np.array([1])][0]) == 2.0

    def test_it_has_no_function_that_cupy_may_lack(self):
        with pytest.raises(AttributeError):
            AWAY.nanmedian(self.there)
        with pytest.raises(AttributeError):
            self.there.tolist()

    def test_it_counts_what_comes_down(self):
        with copies() as found:
            host(self.there)
            host(self.there > 1)
            float(self.there[0])

        assert len(found) == 1


class TestTorch:
    """Both libraries see one memory."""

    @pytest.mark.parametrize("kind", ["float64", "float16", "bfloat16", "float8_e4m3fn", "int64", "bool"])
    @pytest.mark.parametrize("turned", [False, True])
    def test_there_and_back_is_the_same_memory(self, kind, turned):
        torch = pytest.importorskip("torch")
        array = np.array([[1, 0, 3], [4, 5, 6]]).astype(np.dtype(getattr(ml_dtypes, kind, kind)))
        array = array.T if turned else array

        tensor = to_torch(array)
        found = from_torch(tensor)

        assert tensor.dtype == getattr(torch, kind)
        assert found.dtype == array.dtype
        assert np.shares_memory(found, array)
        assert (found == array).all()

    def test_an_array_of_a_gpu_gives_its_own_memory(self, monkeypatch):
        pytest.importorskip("torch")
        held = np.arange(6.0).reshape(2, 3)
        monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(ndarray=Away))

        to_torch(Away(held))[0, 1] = 9

        assert held[0, 1] == 9

    def test_what_may_not_be_written_is_copied(self):
        pytest.importorskip("torch")
        array = np.arange(3.0)
        array.flags.writeable = False

        to_torch(array)[0] = 7

        assert array[0] == 0
