"""Limits over the whole adapter: those of all its modules, found in few looks."""

from dataclasses import replace

import numpy as np
import pytest

from loramerge import Adapter, Breadcrumbs, Magnitude, Ties, combine
from loramerge.algorithms.entries.limits import Search
from loramerge.arrays.workers import workers
from tests.helpers.adapters import cast, dense, distance, random_adapters, truncated, units_of


@pytest.fixture(autouse=True)
def one_thread():
    """As in a worker: more threads wait for each other."""
    with workers(1):
        yield


def everywhere():
    shapes = {"a": (150, 1100), "b": (70, 40), "c": (9, 5)}
    sources = random_adapters(6, (3, 4), shapes)
    weak = {t.path: s * (0.1 if t.path == "a" else 1.0) for t, s in sources[0].items()}
    return [Adapter.of(weak, "source0"), sources[1]]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_limit_over_the_adapter_counts_all_modules(kind):
    sources = [cast(s, kind) for s in everywhere()]
    merge = combine(sources, Magnitude(density=0.3, scope="adapter", rank=9), weights=[1, 0], threads=1)
    wide = cast(sources[0], np.float64)
    sizes = np.concatenate([np.abs(m).ravel() for m in dense(wide).values()])
    limit = np.sort(sizes)[-int(0.3 * len(sizes))]
    found = merge.method.search.limits([0], modules=1)
    ((low,),), ((high,),) = found.low, found.high
    assert low == pytest.approx(limit, rel=1e-6)
    assert high == np.inf
    for path, matrix in dense(wide).items():
        kept = matrix * (np.abs(matrix) >= limit * (1 - 1e-6))
        found = dense(merge.adapter)[path]
        assert distance({path: found}, {path: truncated(kept, 9)}) < 1e-5


def test_the_limits_are_found_in_few_looks():
    sources = everywhere()
    grams = [replace(u.grams(), weights=np.ones(2)) for u in units_of(sources)]
    method, looks = Magnitude(density=0.3, scope="adapter"), 0
    while method.observes:
        method, looks = method.decide([method.observe(g) for g in grams], 4), looks + 1
    assert looks <= 7
    assert method.search.done
    assert not Search().done


@pytest.mark.parametrize("space", ["dense", "core"])
@pytest.mark.parametrize(
    "method", [Ties(scope="adapter"), Breadcrumbs(scope="adapter", gamma=0.05)], ids=repr
)
def test_batches_and_threads_change_no_limit(method, space):
    sources = random_adapters(6, (3, 4), {f"layers.{i}.q": (20 + i, 30) for i in range(20)})
    method = replace(method, space=space)
    marks = {
        (m := combine(sources, method, threads=t, memory=b)).method.search
        for t, b in [(1, 1 << 30), (3, 1 << 16)]
    }
    assert len(marks) == 1
    assert m.report.modules
