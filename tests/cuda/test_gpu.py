"""A merge on a GPU is that of the host, and what a GPU cannot do is said."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import loramerge as lm
from loramerge.algorithms.families.kmeans import cluster
from loramerge.arrays import frames, gram, linalg, polar, remix
from loramerge.arrays.backend import cupy, from_torch, host, namespace, to_torch
from loramerge.cuda import Gpu, available, batch, find, worth
from loramerge.cuda.load import FOLDER
from loramerge.errors import UsageError
from tests.cuda.stand_in import CUPY, LAUNCHED, POOL, Device, OutOfMemoryError, installed
from tests.cuda.test_batch import by_numpy
from tests.helpers.adapters import random_adapters
from tests.helpers.device import AWAY, CALLS, Away, down
from tests.helpers.device import up as to_device

needs_gpu = pytest.mark.skipif(not available(), reason="There is no GPU that CuPy can use.")
METHODS = ["linear", "svd", "lego", "tsv", "iso_c", "wudi", "karcher", "core", "ties"]


RUN = list(lm.METHODS)


def steep(modules):
    """Grams on a device, of modules whose σ fall by many digits, so that every short way is left."""
    rng = np.random.default_rng(0)
    up, low = rng.standard_normal((2, modules, 96, 64))
    up, low = up * 10.0 ** -np.arange(0, 32, 0.5), low + low[:, :, :1] * 1e6
    owner, eye = np.arange(64) // 8, np.broadcast_to(np.eye(64), (modules, 64, 64))
    grams = gram.Grams(
        gram.square(up),
        gram.square(low),
        owner,
        np.ones((modules, 64), bool),
        remix.Remix(eye, eye),
        tuple(map(str, range(modules))),
        read=lambda m: (AWAY.asarray(up[m]), AWAY.asarray(low[m].T)),
    )
    return to_device(grams)


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


class TestChecks:
    """What a solver of the GPU gives is looked at, because its error codes are not."""

    matrices = np.stack([m @ m.T for m in np.random.default_rng(0).standard_normal((3, 5, 5))])

    @pytest.mark.parametrize("fails", ["batch", "always"])
    def test_wrong_eigenvectors_are_solved_again_and_told(self, monkeypatch, fails):
        right = AWAY.linalg.eigh

        def eigh(matrices):
            values, vectors = right(matrices)
            if fails == "always" or matrices.ndim == 3:
                place = (1,) if matrices.ndim == 3 else ()
                vectors[place] = AWAY.asarray(np.zeros((5, 5)))
            return values, vectors

        monkeypatch.setattr(AWAY.linalg, "eigh", eigh, raising=False)
        with pytest.warns(RuntimeWarning, match="one by one" if fails == "batch" else "on the host"):
            values, vectors = map(down, linalg.eigh(AWAY.asarray(self.matrices)))

        np.testing.assert_allclose(vectors * values[:, None, :] @ vectors.swapaxes(1, 2), self.matrices)

    def test_a_cholesky_that_fails_on_a_definite_matrix_is_made_again_and_told(self, monkeypatch):
        right = AWAY.linalg.cholesky

        def wrong(matrices):
            found = right(matrices)
            found[1] = AWAY.asarray(np.eye(5))
            return found

        monkeypatch.setattr(AWAY.linalg, "cholesky", wrong, raising=False)
        with pytest.warns(RuntimeWarning, match="Cholesky factorisation failed .* on the host"):
            found = down(linalg.cholesky(AWAY.asarray(self.matrices)))

        np.testing.assert_allclose(found, np.linalg.cholesky(self.matrices))

    @pytest.mark.parametrize("bad", [0.0, np.nan])
    def test_a_solution_that_is_none_is_made_again_and_told(self, monkeypatch, bad):
        right, given = AWAY.linalg.solve, np.random.default_rng(0).standard_normal((3, 5, 2))

        def wrong(matrices, values):
            found = right(matrices, values)
            found[1] = AWAY.asarray(np.full((5, 2), bad))
            return found

        monkeypatch.setattr(AWAY.linalg, "solve", wrong, raising=False)
        with pytest.warns(RuntimeWarning, match="solver of linear systems failed .* on the host"):
            found = down(linalg.solve(AWAY.asarray(self.matrices), AWAY.asarray(given)))

        np.testing.assert_allclose(found, np.linalg.solve(self.matrices, given))

    def test_a_singular_system_is_an_error_as_with_numpy(self):
        with pytest.raises(np.linalg.LinAlgError):
            linalg.solve(AWAY.asarray(np.ones((2, 3, 3))), AWAY.asarray(np.ones((2, 3, 1))))

    def test_only_the_checked_solvers_run_on_a_device(self):
        """Elsewhere a solver is NumPy's by name: it is for arrays of the host."""
        solver = re.compile(
            r"(\S+)\.linalg\.(cholesky|eigh?|eigvalsh?|svd|qr|solve|inv|pinv|lstsq|det|matrix_rank)\b"
        )
        found = [
            f"{path.name}: {call[0]}"
            for room in ("arrays", "algorithms", "merge", "sources")
            for path in sorted((FOLDER.parent / room).rglob("*.py"))
            for call in solver.finditer(path.read_text(encoding="utf-8"))
            if path.name != "linalg.py" and not call[1].endswith("np")
        ]

        assert not found

    @pytest.mark.parametrize(
        "what",
        [
            lambda g: gram.leading(g.up, g.down, 4),
            lambda g: linalg.svd(g.up[:, :, :5] * AWAY.asarray(np.arange(5.0) > 0)),
            frames.spectral,
            lambda g: polar.singular(*(linalg.svd(g.up)[n] for n in (0, 1)), 0.5 * g.up),
        ],
        ids=["leading", "tall", "spectral", "polar"],
    )
    def test_modules_that_need_more_are_solved_together(self, what):
        """Twenty take no more eigenproblems, factorisations and solutions than one."""
        found = []
        for modules in (1, 20):
            CALLS.clear()
            what(steep(modules))
            found.append({name: CALLS[name] for name in ("eigh", "cholesky", "solve")})

        assert found[0] == found[1]
        assert 0 < found[0]["eigh"] <= 9

    def test_half_of_a_cholesky_factor_is_none(self):
        matrices = self.matrices.copy()
        matrices[1] *= -1

        found = down(linalg.cholesky(AWAY.asarray(matrices)))

        assert np.isnan(found[1]).all()
        np.testing.assert_allclose(found[[0, 2]], np.linalg.cholesky(matrices[[0, 2]]))

    @pytest.mark.parametrize("shape", [(5, 5), (7, 3), (3, 7), (4, 1), (1, 1)])
    @pytest.mark.parametrize("kind", ["full", "rank 1", "graded", "zero"])
    def test_an_svd_of_two_factorisations_has_every_digit(self, shape, kind):
        a = np.random.default_rng(1).standard_normal((2, *shape))
        a = {"full": a, "rank 1": a[:, :, :1] @ a[:, :1], "zero": 0 * a}.get(
            kind, a * 10.0 ** -np.arange(0, 3 * shape[1], 3)
        )

        u, sigma, vt = map(down, linalg.svd(AWAY.asarray(a)))

        largest = np.linalg.svd(a, compute_uv=False)
        np.testing.assert_allclose(sigma, largest, atol=1e-13 * max(largest.max(), 1e-300))
        np.testing.assert_allclose(u * sigma[:, None, :] @ vt, a, atol=1e-12 * max(np.abs(a).max(), 1e-300))

    def test_it_is_on_the_device_that_they_are_made(self):
        assert all(isinstance(each, Away) for each in linalg.svd(AWAY.asarray(self.matrices)))
        assert namespace(linalg.singular_values(AWAY.asarray(self.matrices))) is AWAY


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
