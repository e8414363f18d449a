"""Factors reach a GPU ahead of their use, in two buffers, and their Grams are few large products."""

import threading

import ml_dtypes
import numpy as np
import pytest

import loramerge as lm
from loramerge.arrays import workers
from loramerge.cuda.batch import Batch, Staging
from loramerge.cuda.gpu import workspace_by_rule
from loramerge.request.effort import Effort
from loramerge.sources.batches import needs, there
from loramerge.sources.units import Units
from tests.cuda.stand_in import CUPY, installed
from tests.helpers.adapters import random_adapters
from tests.helpers.device import AWAY, CALLS, STREAMS, down

SHAPES = [(40, 50), (30, 60), (40, 50), (40, 50), (30, 60)]
TYPES = [np.float32, ml_dtypes.bfloat16, np.float16]  # of three sources
BATCHED = [name for name, method in lm.METHODS.items() if method().batched]
ANY = [name for name in BATCHED if name != "ffa"]  # which wants sources of one lora_A
ASKED = {"cat": {}, "fair": {}, "fedavg": {}, "sg": {"weights": [1.0, 0.5]}}  # others want a rank
LLAMA_70B = [(8192, 8192), (1024, 8192), (28672, 8192), (8192, 28672)]


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    with installed(monkeypatch):
        yield


def stored(module, ranks=(3, 2, 4)):
    """Factors of three sources of one module, each in a type of its own."""
    rng, (outs, ins) = np.random.default_rng(module), SHAPES[module]
    pairs = list(zip(ranks, TYPES, strict=True))
    return tuple([rng.standard_normal(s).astype(t) for s, t in each] for each in (
        [((outs, r), t) for r, t in pairs], [((r, ins), t) for r, t in pairs]
    ))  # fmt: skip


def wide(module):
    ups, downs = stored(module)
    return np.concatenate(ups, axis=1, dtype=float), np.concatenate(downs, axis=0, dtype=float)


def made(modules=range(5), read=stored):
    return Batch(0, [SHAPES[m] for m in modules], read)


def test_factors_and_grams_are_those_of_the_host():
    batch = made()

    ups, downs = map(down, batch.grams())

    for module in range(5):
        up, low = wide(module)
        np.testing.assert_array_equal(down(batch.factor(module, 0)), up)
        np.testing.assert_array_equal(down(batch.factor(module, 1)), low)
        np.testing.assert_allclose(ups[module], up.T @ up, rtol=1e-12)
        np.testing.assert_allclose(downs[module], low @ low.T, rtol=1e-12)
    batch.drop()


def test_a_product_takes_all_modules_of_a_shape():
    CALLS.clear()

    made().grams()

    assert CALLS["matmul"] == 4, "two shapes, two sides"


def test_merged_factors_are_made_together_too():
    P, Q = np.random.default_rng(0).standard_normal((2, 5, 9, 9))
    batch, there = made(), (AWAY.asarray(P[:, :, :2]), AWAY.asarray(Q[:, :2]))
    CALLS.clear()

    found = [tuple(map(down, batch.mixed(*there, module))) for module in range(5)]

    assert CALLS["matmul"] == 4, "two shapes, two sides"
    for module, (up, low) in enumerate(found):
        np.testing.assert_allclose(up, wide(module)[0] @ P[module, :, :2], rtol=1e-10)
        np.testing.assert_allclose(low, Q[module, :2] @ wide(module)[1], rtol=1e-10)
    other = AWAY.asarray(2 * P[:, :, :2]), there[1]
    np.testing.assert_allclose(down(batch.mixed(*other, 3)[0]), 2 * found[3][0], rtol=1e-12)


@pytest.mark.parametrize("modules", [1, 8])
def test_centroids_are_stretched_together(modules, monkeypatch):
    """Three products a shape: of each side, and of what each unit gives to a centroid."""
    monkeypatch.setattr("loramerge.cuda.batch.launch", by_numpy)
    shapes = {f"{kind}{n}": shape for n in range(modules) for kind, shape in (("k", (9, 20)), ("q", (20, 9)))}
    plan = lm.plan(random_adapters(0, (3, 4)), "lego", variant="ctm", rank=3, device="cuda")
    sources = random_adapters(0, (3, 4), shapes)
    there, here = (lm.plan(sources, plan.method, device=d).batches(Effort(device=d)) for d in ("cuda", "cpu"))

    def made(batches):
        units = batches[0]
        assert batches == [units]
        result = plan.method.remix(units.grams(balance=False))
        CALLS.clear()
        return units.targets, units.settle(result), units.kept()

    targets, found, _ = made(there)
    calls = CALLS["matmul"]
    known, wanted, _ = made(here)
    core, at = down(found.core), list(map(known.index, targets))

    assert calls == 6, "two shapes"
    np.testing.assert_allclose(core, wanted.core[at], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("ranks", "calls"), [((3, 4), 1), ((40, 40), 2)], ids=["few units", "many units"])
@pytest.mark.parametrize("modules", [1, 12])
def test_a_batch_is_one_eigenproblem_of_all_its_modules(ranks, calls, modules, monkeypatch):
    """With 64 units and more there are two: one that finds the leading units, and a smaller one of these."""
    monkeypatch.setattr("loramerge.cuda.batch.launch", by_numpy)
    sources = random_adapters(0, ranks, {f"m{n}": (100, 120) for n in range(modules)})
    CALLS.clear()

    lm.combine(sources, "svd", rank=3, device="cuda", threads=1)

    assert CALLS["eigh"] == calls


def test_while_one_batch_is_computed_the_next_is_read():
    begun = threading.Event()
    second = made(read=lambda module: begun.set() or stored(module))
    first = made()
    first.after = second

    first.grams()

    assert begun.wait(10), "nobody has asked for it"
    np.testing.assert_array_equal(down(second.factor(4, 0)), wide(4)[0])
    second.drop()


@pytest.mark.parametrize("count", [1, 2])
def test_every_batch_of_a_merge_starts_one_that_comes_later(count):
    sources = random_adapters(0, (20, 20), {f"m{n}": (30, 40) for n in range(40)})
    opened = lm.plan(sources, "svd", device="cuda", rank=4).sources

    found = [units.gpu for units in opened.batches(Effort(count, 4e6, "cuda"))]

    assert len(found) > 2 * count
    assert [each.after for each in found] == found[count:] + [None] * count


def test_a_gpu_takes_batches_as_large_as_its_memory_allows():
    """A core has none larger than its cache; a GPU waits for a few modules as long as for many."""
    sources = random_adapters(0, (40, 40), {f"m{n}": (90, 100) for n in range(100)})

    def sizes(**asked):
        plan = lm.plan(sources, "svd", rank=4, **asked)
        return [len(units.targets) for units in plan.batches(plan.effort)]

    assert sizes(device="cuda", memory="8GB") == [25] * 4
    assert max(sizes(device="cuda", memory="20MB")) < 25
    assert max(sizes(device="cpu", memory="8GB", threads=1)) < 25


def test_no_batch_is_larger_than_cusolver_can_count(monkeypatch):
    """Its workspace is counted in 32 bits, which overflow on a large GPU without an error."""
    monkeypatch.setattr("loramerge.cuda.gpu.COUNTED", 10 * 2 * 160**2)  # ten eigenproblems of 2 × 80 rows
    sources = random_adapters(0, (40, 40), {f"m{n}": (90, 100) for n in range(100)})
    plan = lm.plan(sources, "svd", rank=4, device="cuda", memory="8GB")

    found = [len(units.targets) for units in plan.batches(plan.effort)]

    assert max(found) == 9
    assert sum(found) == 100


def test_a_gpu_has_two_workers_unless_more_are_asked_for(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    sources = random_adapters(0, (3, 4))

    def workers(method, **asked):
        return lm.plan(sources, method, **asked).effort.workers

    assert workers("svd", device="cuda") == 2
    assert workers("svd", device="cuda", threads=5) == 5
    assert workers("ties", device="cuda") == 8, "it stays on the host"
    assert workers("svd") == 8


def test_what_was_dropped_is_read_again():
    reads = []
    batch = made(read=lambda module: reads.append(module) or stored(module))
    batch.grams()
    batch.drop()
    reads.clear()

    np.testing.assert_array_equal(down(batch.factor(2, 1)), wide(2)[1])

    assert reads == [2]


def test_a_failure_to_read_ahead_is_told_to_who_asks():
    def read(module):
        raise lm.LoramergeError("the file is gone")

    with pytest.raises(lm.LoramergeError, match="the file is gone"):
        made(read=read).grams()


def test_two_pinned_buffers_are_enough(monkeypatch):
    taken = []
    right = CUPY.cuda.alloc_pinned_memory
    monkeypatch.setattr(CUPY.cuda, "alloc_pinned_memory", lambda size: taken.append(size) or right(size))
    staging, parts = Staging(), [np.arange(6.0), np.arange(5, dtype=np.float32)]
    places = [CUPY.empty(part.shape, part.dtype) for part in parts]

    for _ in range(7):
        staging.send(parts, places)
    staging.wait()

    assert len(taken) == 2
    for part, place in zip(parts, places, strict=True):
        np.testing.assert_array_equal(down(place), part)


def test_a_part_of_another_type_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        Staging().send([np.zeros(3)], [CUPY.empty((3,), np.float32)])


class TestStreams:
    """Arrays of another thread, before anybody has waited for them, would be seen half made."""

    def test_what_was_sent_may_not_be_forgotten_while_it_is_read(self):
        batch = made()
        batch.start()
        batch.factor(0, 0)

        del batch

        assert STREAMS.early
        STREAMS.early.clear()

    def session(self):
        opened = lm.open(random_adapters(0, (3, 4)), device="cuda")
        opened.combine("svd", rank=3)
        return opened

    def test_grams_of_a_session_may_be_used_by_any_thread(self):
        self.session().combine("svd", rank=3, weights=[1.0, 2.0])

    def test_without_waiting_that_is_seen(self, monkeypatch):
        monkeypatch.setattr(workers, "finish", lambda: None)
        monkeypatch.setattr("loramerge.cuda.batch.finish", lambda: None)
        monkeypatch.setattr(Units, "kept", lambda self: self)

        with pytest.raises(AssertionError, match="nobody has waited"):
            self.session().combine("svd", rank=3, weights=[1.0, 2.0])


def by_numpy(bits, place, kind):
    """`launch`, without a thread of the host for each thread of a block."""
    types = {0: np.float64, 1: np.float32, 2: np.float16, 3: ml_dtypes.bfloat16}
    place._held[...] = bits._held.view(types[kind])


@pytest.mark.parametrize(
    "method", [m if m in ("svd", "core") else pytest.param(m, marks=pytest.mark.slow) for m in ANY]
)
@pytest.mark.parametrize("memory", [6e6, 2e7])
def test_a_merge_stays_within_its_memory(method, memory, monkeypatch):
    monkeypatch.setattr("loramerge.cuda.batch.launch", by_numpy)
    sources = random_adapters(0, (24, 24), {f"m{n}": (64, 80) for n in range(40)})
    asked = {"device": "cuda", "threads": 1, "memory": memory, **ASKED.get(method, {"rank": 4})}
    opened = lm.plan(sources, method, **asked)
    largest = max(len(units.targets) for units in opened.batches(opened.effort))
    STREAMS.peak = STREAMS.live

    lm.combine(sources, method, **asked)

    assert 0.2 * memory < STREAMS.peak <= memory, (STREAMS.peak / memory, largest)


@pytest.mark.parametrize("shape", LLAMA_70B)
@pytest.mark.parametrize("method", BATCHED)
def test_modules_of_a_70b_with_64_adapters_fit_a_card_of_16_gb(shape, method):
    """By computation: what a batch of one module takes, with half a gigabyte for CUDA itself."""
    signature, units = (16,) * 64, 1024
    apart, each = needs(signature, shape, lm.METHODS[method]())

    assert apart + each + workspace_by_rule(units) + there(units, shape, 8) + 5e8 < 16e9
