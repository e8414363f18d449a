"""What each method says that it holds is what it holds, and batches follow it: `--memory` is kept."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import loramerge as lm
from loramerge.sources.units import needs
from tests.helpers.files import bare
from tests.laws.rows import every_kind

RANK, MODULES, SOURCES = 32, 2, 6
SIZE, LARGE = 200, 1200  # LARGE: more than a tile of any method
SPARE = 3 << 20  # of Python's own, and of what is the same for all
ONE = 1.0  # byte: a module at a time, whatever it takes


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return made(tmp_path_factory.mktemp("memory"), SIZE)


@pytest.fixture(scope="module")
def large_files(tmp_path_factory):
    return made(tmp_path_factory.mktemp("large"), LARGE)


def made(folder, size):
    """Sources on the disk, so that neither they nor the merge are held: some with one A, as `ffa` wants."""
    rng = np.random.default_rng(0)
    one = rng.standard_normal((RANK, size)).astype(np.float32)

    def values(shared):
        for m in range(MODULES):
            down = one if shared else rng.standard_normal((RANK, size)).astype(np.float32)
            yield f"base_model.model.layers.{m}.q.lora_A.weight", down
            up = rng.standard_normal((size, RANK)).astype(np.float32)
            yield f"base_model.model.layers.{m}.q.lora_B.weight", up

    return {
        shared: [
            bare(folder / f"{'shared' if shared else 'own'}{t}.safetensors", dict(values(shared)), {})
            for t in range(SOURCES)
        ]
        for shared in (True, False)
    }


def peak(plan, out):
    """The most bytes that were alive at once while a plan was carried out."""
    plan = replace(plan, request=replace(plan.request, out=out))
    tracemalloc.start()
    try:
        lm.merge.run.run(plan)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@every_kind
def test_a_method_holds_what_it_says(method, files, tmp_path):
    check(method, files, SIZE, tmp_path, (1, MODULES))


@pytest.mark.slow
@every_kind
def test_a_method_holds_what_it_says_of_a_large_module(method, large_files, tmp_path):
    check(method, large_files, LARGE, tmp_path, (1,))


def test_masks_of_a_large_module_are_made_in_tiles(large_files, tmp_path):
    check(lm.MergeVla(), large_files, LARGE, tmp_path, (1,))


def check(method, files, size, tmp_path, counts):
    sources = files[method.traits.units == "shared"][: method.traits.most]
    weights = np.linspace(1, 0.5, len(sources)).tolist()
    lm.combine(sources[:1], "svd", alpha="rank")  # everything is imported
    plan = lm.plan(sources, method, weights=weights, alpha="rank", threads=1)
    signature = next(iter(plan.work.signatures.values()))
    apart, each = needs(signature, (size, size), plan.method)
    for modules in counts:
        memory = ONE if modules == 1 else apart + modules * each
        asked = replace(plan, request=replace(plan.request, memory=memory))
        assert max(len(batch.targets) for batch in asked.batches(asked.effort)) == modules
        found = peak(asked, tmp_path / str(modules))
        assert found <= apart + modules * each + SPARE, f"{found / 1e6:.1f} MB"


def test_workers_are_no_more_than_can_hold_a_module(files):
    plan = lm.plan(files[False], "core", alpha="rank", threads=8)
    apart, each = needs((RANK,) * SOURCES, (SIZE, SIZE), plan.method)
    assert plan.effort.workers == 8
    few = replace(plan, request=replace(plan.request, memory=2.5 * (apart + each)))
    assert few.effort.workers == 2


def test_a_module_that_takes_more_than_there_may_be_is_merged_and_told(files):
    plan = lm.plan(files[False], "core", alpha="rank", threads=1)
    held = plan.work.held(plan.method)
    few = replace(plan, request=replace(plan.request, memory=held - 1.0))
    assert not plan.above_memory
    assert all("core takes about" in note and "merged one at a time" in note for note in few.above_memory)
    assert len(few.above_memory) == 1
    assert few.notes == plan.notes, "no record tells of the machine"
