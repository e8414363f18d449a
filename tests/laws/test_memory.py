"""What each method says that it holds is what it holds, and batches follow it: `--memory` is kept."""

import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.sources.batches import asked, needs
from tests.helpers.adapters import random_adapters
from tests.helpers.files import bare
from tests.laws.rows import FIRST, ROWS, every_kind, taken

RANK, MODULES, SOURCES = 32, 2, 6
FAR = {"tall": (12000, 16), "wide": (16, 12000), "row": (1, 30000)}  # of the factors alone 5 to 12 MB
FARTHEST = {"tall": (120000, 48), "wide": (48, 120000), "row": (1, 400000)}
FEW = 8  # the rank there
SIZE, LARGE = 200, 1200  # LARGE: more than a tile of any method
SPARE = 3 << 20  # of Python's own, and of what is the same for all
PAGES = 40 << 20  # of a process, which the allocator keeps
ONE = 1.0  # byte: a module at a time, whatever it takes


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return made(tmp_path_factory.mktemp("memory"), (SIZE, SIZE))


@pytest.fixture(scope="module")
def large_files(tmp_path_factory):
    return made(tmp_path_factory.mktemp("large"), (LARGE, LARGE))


@pytest.fixture(scope="module", params=FAR)
def far(request, tmp_path_factory):
    return FAR[request.param], made(tmp_path_factory.mktemp("far"), FAR[request.param], FEW)


def made(folder, shape, rank=RANK):
    """Sources on the disk, so that neither they nor the merge are held: some with one A, as `ffa` wants."""
    rng = np.random.default_rng(0)
    one = rng.standard_normal((rank, shape[1])).astype(np.float32)

    def values(shared):
        for m in range(MODULES):
            down = one if shared else rng.standard_normal((rank, shape[1])).astype(np.float32)
            yield f"base_model.model.layers.{m}.q.lora_A.weight", down
            up = rng.standard_normal((shape[0], rank)).astype(np.float32)
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
    check(method, files, (SIZE, SIZE), tmp_path, (1, MODULES))


@pytest.mark.slow
@every_kind
def test_a_method_holds_what_it_says_of_a_large_module(method, large_files, tmp_path):
    check(method, large_files, (LARGE, LARGE), tmp_path, (1,))


def test_masks_of_a_large_module_are_made_in_tiles(large_files, tmp_path):
    check(lm.MergeVla(), large_files, (LARGE, LARGE), tmp_path, (1,))


@every_kind
def test_a_method_holds_what_it_says_of_a_module_far_from_square(method, far, tmp_path):
    shape, files = far
    check(method, files, shape, tmp_path, (1,))


@pytest.fixture(scope="module", params=FARTHEST)
def farthest(request, tmp_path_factory):
    return made(tmp_path_factory.mktemp("farthest"), FARTHEST[request.param], FEW)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are counted otherwise there")
@pytest.mark.parametrize("name", FIRST.values())
def test_a_process_takes_no_more_than_its_method_says(name, farthest, tmp_path):
    """With what libraries hold in C, which nobody counts inside of Python."""
    grown, said = process(name, farthest, tmp_path / "out")
    assert grown <= said + PAGES, f"{grown / 1e6:.0f} MB, and {said / 1e6:.0f} MB were said"


def process(name, files, out):
    """By how many bytes a process grows while it merges, and what its method says."""
    files = {shared: [str(file) for file in some] for shared, some in files.items()}
    words = f"{name!r}, {files!r}, {str(out)!r}"
    script = f"from tests.laws.test_memory import grown; print(*grown({words}))"
    where, env = Path(__file__).parents[2], {**os.environ, "OMP_NUM_THREADS": "1"}
    told = subprocess.run([sys.executable, "-c", script], cwd=where, env=env, check=True, capture_output=True)
    grown, said = map(int, told.stdout.split())
    return grown, said


def grown(name, files, out):
    method = ROWS[name]
    sources = files[method.traits.units == "shared"][: method.traits.most]
    weights = np.linspace(1, 0.5, len(sources)).tolist()
    small, some = taken(method, random_adapters(0, (4, 4), {"q": (30, 40)}), weights[:2])
    lm.combine(small, method, weights=some)  # everything is imported
    plan = lm.plan(sources, method, weights=weights, alpha="rank", threads=1, memory=ONE)
    before = most()
    lm.merge.run.run(replace(plan, request=replace(plan.request, out=out)))
    return most() - before, plan.held


def most():
    """The most bytes that this process has taken; `ru_maxrss` would count those of its parent, too."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def check(method, files, shape, tmp_path, counts):
    sources = files[method.traits.units == "shared"][: method.traits.most]
    weights = np.linspace(1, 0.5, len(sources)).tolist()
    lm.combine(sources[:1], "svd", alpha="rank")  # everything is imported
    plan = lm.plan(sources, method, weights=weights, alpha="rank", threads=1)
    signature = next(iter(plan.work.signatures.values()))
    slots = [slot for adapter in plan.work.adapters for slot in adapter.slots.values()]
    apart, each = needs(signature, shape, plan.method, asked(slots, plan.work.signatures, plan.outline))
    for modules in counts:
        memory = ONE if modules == 1 else apart + modules * each
        few = replace(plan, request=replace(plan.request, memory=memory))
        assert max(len(batch.targets) for batch in few.batches(few.effort)) == modules
        found = peak(few, tmp_path / str(modules))
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
