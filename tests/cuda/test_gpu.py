"""A merge on a GPU is that of the host, and what a GPU cannot do is said."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import loramerge as lm
from loramerge.algorithms.families.kmeans import cluster
from loramerge.arrays import linalg
from loramerge.arrays.backend import cupy, from_torch, host, to_torch
from loramerge.cli import main
from loramerge.cuda import Gpu, available, batch, find, worth
from loramerge.errors import UsageError
from tests.cuda.stand_in import CUPY, LAUNCHED, POOL, Device, OutOfMemoryError, installed
from tests.cuda.test_batch import by_numpy
from tests.helpers.adapters import random_adapters
from tests.helpers.device import AWAY

FIXTURES = Path(__file__).parents[2] / "fixtures"
needs_gpu = pytest.mark.skipif(not available(), reason="There is no GPU that CuPy can use.")
METHODS = ["linear", "svd", "lego", "tsv", "iso_c", "wudi", "karcher", "core", "ties"]


RUN = list(lm.METHODS)


FULL = r"cuda:0 ran out of memory; .* memory=, fewer threads=, or device="


def full(*_):
    raise OutOfMemoryError


def dense(merge):
    return {str(t): merge.adapter[t].dense() for t in merge.adapter}


def assert_same(found, wanted, share=1e-5):
    assert found.keys() == wanted.keys()
    for name, matrix in wanted.items():
        assert np.linalg.norm(found[name] - matrix) <= share * np.linalg.norm(matrix), name


class TestWithoutAGpu:
    """By a stand-in that refuses what CuPy refuses, and runs the kernels on threads of the host."""

    @pytest.fixture(autouse=True)
    def _cupy(self, monkeypatch):
        with installed(monkeypatch):
            yield

    @pytest.mark.parametrize("method", METHODS)
    def test_every_kind_of_method_gives_the_merge_of_the_host(self, method):
        sources = random_adapters(0, (3, 4))

        found = lm.combine(sources, method, rank=None if method in ("linear",) else 3, device="cuda:1")

        assert_same(dense(found), dense(lm.combine(sources, method, rank=None if method == "linear" else 3)))
        assert set(Device.used) <= {1}
        assert bool(LAUNCHED) == (method != "ties")

    @pytest.mark.parametrize(
        "method", [m if m in METHODS else pytest.param(m, marks=pytest.mark.slow) for m in RUN]
    )
    def test_every_method_runs_here_or_says_once_that_it_does_not(self, method, monkeypatch):
        monkeypatch.setattr("loramerge.cuda.batch.launch", by_numpy)
        sources = random_adapters(0, (4, 4))
        if method == "ffa":  # of one lora_A
            sources = [sources[0], replace(sources[0], name="again")]
        asked = {"weights": [1.0, 0.5]} if method == "sg" else {}

        found = lm.combine(sources, method, device="cuda", **asked)

        wanted = lm.combine(sources, method, **asked)
        assert_same(dense(found), dense(wanted))
        notes = [note for note in found.report.notes if "works on the host" in note]
        assert len(notes) == (not lm.METHODS[method]().batched)

    def test_a_method_that_stays_on_the_host_says_so(self):
        report = lm.combine(random_adapters(0, (3, 4)), "ties", rank=3, device="cuda").report

        assert any("ties works on the host" in note for note in report.notes)

    def test_weights_of_what_was_opened_are_tried_on_the_gpu(self):
        sources = random_adapters(0, (3, 4))

        found = lm.open(sources, device="cuda").combine("svd", rank=3, weights=[0.5, 2.0])

        assert_same(dense(found), dense(lm.combine(sources, "svd", rank=3, weights=[0.5, 2.0])))

    def test_auto_leaves_small_modules_on_the_host(self, monkeypatch):
        monkeypatch.setenv(worth.OVERRIDE, "32")
        few, many = random_adapters(0, (3, 4)), random_adapters(0, (20, 20), {"q": (50, 60)})

        lm.combine(few, "linear", device="auto")
        assert not LAUNCHED
        lm.combine(many, "linear", device="auto")
        assert LAUNCHED

    def test_a_gpu_without_memory_is_a_sentence(self, monkeypatch):
        monkeypatch.setattr(batch, "stacked", full)

        with pytest.raises(UsageError, match=FULL):
            lm.combine(random_adapters(0, (3, 4)), "svd", device="cuda")

    @pytest.mark.parametrize("moment", ["looking", "merging", "reading", "saving"])
    def test_so_it_is_at_every_moment_of_a_session(self, monkeypatch, moment, tmp_path):
        session = lm.open(random_adapters(0, (3, 4)), device="cuda")
        if moment == "looking":
            monkeypatch.setattr(batch, "stacked", full)
            with pytest.raises(UsageError, match=FULL):
                session.combine("svd", rank=3)
            return
        merge = session.combine("svd", rank=3)
        again = {
            "merging": lambda: session.combine("svd", rank=3, weights=[1.0, 2.0]),
            "reading": lambda: merge.adapter["layers.0.q"],
            "saving": lambda: merge.save(tmp_path / "out"),
        }
        place = ("loramerge.merge.session.decided",) if moment == "merging" else (batch, "stacked")
        monkeypatch.setattr(*place, full)

        with pytest.raises(UsageError, match=FULL):
            again[moment]()

    def test_memory_that_lies_idle_above_the_bound_is_given_back(self, monkeypatch):
        sources = random_adapters(0, (3, 4))
        freed = POOL.freed

        lm.combine(sources, "svd", device="cuda", memory=10**6)
        assert POOL.freed == freed
        monkeypatch.setattr(POOL, "total", 2 * 10**6)
        lm.combine(sources, "svd", device="cuda", memory=10**6)

        assert POOL.freed > freed

    @pytest.mark.filterwarnings("default")
    def test_the_command_line_tells_it_in_a_sentence(self, monkeypatch, tmp_path, capsys):
        right = AWAY.linalg.eigh

        def eigh(matrices):
            values, vectors = right(matrices)
            return values, (vectors if matrices.ndim == 2 else 0 * vectors)

        monkeypatch.setattr(AWAY.linalg, "eigh", eigh, raising=False)
        files = [str(FIXTURES / f"{name}.safetensors") for name in "ab"]
        with pytest.raises(SystemExit) as ended:
            main(["combine", *files, "--method", "svd", "--device", "cuda", "-o", str(tmp_path / "out")])

        said = [line for line in capsys.readouterr().err.splitlines() if "eigensolver" in line]
        assert ended.value.code == 0
        assert said
        assert all(line.startswith("warning: The GPU's batched eigensolver failed") for line in said)

    def test_there_is_no_third_gpu(self):
        with pytest.raises(UsageError, match=r"device='cuda:2': no such GPU answers .*invalid device"):
            find("cuda:2")


def missing(stand_in, real, path=""):
    """What the stand-in has and CuPy lacks."""
    for name, value in vars(stand_in).items():
        if not hasattr(real, name):
            yield f"{path}{name}"
        elif isinstance(value, SimpleNamespace):
            yield from missing(value, getattr(real, name), f"{path}{name}.")


def test_the_stand_in_has_no_name_that_cupy_lacks():
    real = pytest.importorskip("cupy", reason="CuPy is not installed: the stand-in's names were read in 14.2")

    assert [*missing(CUPY, real)] == []
    assert hasattr(real.cuda.PinnedMemoryPointer, "size")
    assert {"compute_capability", "attributes", "cusolver_handle", "use"} <= set(dir(real.cuda.Device))


def test_without_cupy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)

    with pytest.raises(UsageError, match=r"CuPy is not installed. .* extra cuda13"):
        lm.combine(random_adapters(0, (3, 4)), device="cuda")
    assert find("auto") is None


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "CUDA", ""])
def test_a_device_has_one_of_four_names(device):
    with pytest.raises(UsageError, match="device="):
        lm.combine(random_adapters(0, (3, 4)), device=device)


@pytest.mark.gpu
@needs_gpu
class TestOnAGpu:
    """Parity with the CPU on a real device."""

    @pytest.mark.parametrize("method", METHODS)
    def test_merges_are_those_of_the_host(self, method):
        sources = random_adapters(0, (16, 16, 16))

        found = lm.combine(sources, method, rank=None if method == "linear" else 8, device="cuda")

        assert_same(dense(found), dense(lm.combine(sources, method, rank=None if method == "linear" else 8)))

    @pytest.mark.parametrize("size", [1, 31, 32, 33, 64, 112, 168, 512])
    def test_steps_in_float64_have_ten_digits(self, size):
        matrices = np.random.default_rng(size).standard_normal((3, size, size))
        square = matrices @ matrices.swapaxes(1, 2) + np.eye(size)
        there = cupy().asarray

        for step in (linalg.cholesky, linalg.singular_values, lambda a: linalg.eigh(a)[0]):
            np.testing.assert_allclose(host(step(there(square))), step(square), rtol=1e-10)
        u, sigma, vt = map(host, linalg.svd(there(matrices)))
        largest = np.abs(matrices).max()
        np.testing.assert_allclose(u * sigma[:, None, :] @ vt, matrices, atol=1e-10 * largest)

    def test_no_unit_flips_to_another_cluster(self):
        points = np.random.default_rng(0).standard_normal((16, 168, 40))
        kernels, live = points @ points.swapaxes(1, 2), np.ones((16, 168), bool)
        names = tuple(map(str, range(16)))

        there = cluster(cupy().asarray(kernels), cupy().asarray(live), 20, names, 0, 1)

        flips = (host(there) != cluster(kernels, live, 20, names, 0, 1)).sum()
        assert flips == 0, f"{flips} of {live.size} units"

    def test_a_thousand_runs_are_one(self):
        sources = random_adapters(0, (8, 8))
        wanted = dense(lm.combine(sources, "lego", rank=4, device="cuda"))

        for _ in range(1000):
            found = dense(lm.combine(sources, "lego", rank=4, device="cuda"))
            assert all((found[name] == wanted[name]).all() for name in wanted)

    def test_out_of_memory_is_a_sentence(self):
        pool = cupy().get_default_memory_pool()
        pool.free_all_blocks()
        pool.set_limit(size=1 << 20)
        try:
            with pytest.raises(UsageError, match="cuda:0 ran out of memory"):
                lm.combine(random_adapters(0, (64, 64), {"q": (2048, 2048)}), "svd", rank=8, device="cuda")
        finally:
            pool.set_limit(size=0)

    def test_tensors_of_torch_on_the_gpu_cross_without_a_copy(self):
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("This torch has no CUDA.")
        array = cupy().arange(6.0)

        tensor = to_torch(array)

        assert tensor.is_cuda
        assert from_torch(tensor).data.ptr == array.data.ptr == tensor.data_ptr()

    @pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
    def test_compute_sanitizer_finds_nothing(self, tool):
        if (sanitizer := shutil.which("compute-sanitizer")) is None:
            pytest.skip("compute-sanitizer is not installed: it comes with the CUDA toolkit.")
        lines = (
            "import loramerge as lm; from tests.helpers.adapters import random_adapters as made;"
            "lm.combine(made(0, (40, 33, 24)), 'lego', rank=8, device='cuda')"
        )
        asked = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", lines]

        done = subprocess.run(asked, capture_output=True, text=True)

        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    def test_it_is_found_by_its_name(self):
        assert find("cuda:0") == Gpu(0)
