"""The same merge is the same bytes, whatever the threads, the order and the hash seed."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from loramerge import combine
from tests.helpers.adapters import random_adapters
from tests.laws.rows import QUICK, ROWS, every_method, fingerprint, taken


def many_modules(layers):
    shapes = {f"layers.{i}.{name}": (7 + i % 4, 9) for i in range(layers) for name in "qv"}
    return random_adapters(8, (3, 2, 3), shapes), [1.0, -0.5, 2.0]


def bytes_of(method, threads=1, turn=list, layers=4):
    sources, weights = taken(method, *many_modules(layers))
    sources = [replace(s, slots=dict(turn(s.slots.items()))) for s in sources]
    return fingerprint(combine(sources, method, weights=weights, threads=threads).adapter)


def bytes_of_all(names):
    return [bytes_of(ROWS[name], layers=2) for name in names]


@every_method
def test_the_bytes_do_not_depend_on_the_threads(method):
    """With more of them batches are smaller."""
    assert len({bytes_of(method, threads, layers=20) for threads in (1, 5)}) == 1


@every_method
def test_the_bytes_do_not_depend_on_the_order_of_the_modules(method):
    assert bytes_of(method, turn=lambda items: reversed(list(items))) == bytes_of(method)


@pytest.mark.parametrize(
    "names", [sorted(QUICK), pytest.param(list(ROWS), marks=pytest.mark.slow)], ids=["quick", "all"]
)
def test_the_bytes_do_not_depend_on_the_hash_seed(names):
    root = Path(__file__).parents[2]
    script = f"from tests.laws.test_bytes import bytes_of_all; print(bytes_of_all({names!r}))"

    def under(seed):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        return subprocess.run(
            [sys.executable, "-c", script], cwd=root, env=env, check=True, capture_output=True, text=True
        ).stdout

    here = f"{bytes_of_all(names)}\n"
    assert {under(seed) for seed in ("0", "12345")} == {here}
