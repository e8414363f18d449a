"""Every kernel compiles for every generation of GPUs, and keeps its numbers in registers."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.speed import nvrtc
from benchmarks.speed.nvrtc import ARCHITECTURES
from loramerge.cuda.kmeans import MOST
from loramerge.cuda.load import FLAGS, FOLDER, KERNELS, options
from loramerge.cuda.load import compiled as kept
from tests.cuda.nvrtc import compiled
from tests.cuda.stand_in import COMPILED, installed

QUICK = {75, 90}
REGISTERS = 65536  # of a multiprocessor, which one block must fit into
DOCS = Path(__file__).parents[2] / "docs"
each_architecture = pytest.mark.parametrize(
    "architecture", [a if a in QUICK else pytest.param(a, marks=pytest.mark.slow) for a in ARCHITECTURES]
)


def test_every_source_is_a_kernel_of_the_list():
    assert {path.stem for path in FOLDER.glob("*.cu")} == set(KERNELS)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.cu*")), ids=lambda path: path.name)
def test_every_source_opens_with_why_it_has_its_shape(path):
    head = re.match(r"(//.*\n)+", path.read_text(encoding="utf-8"))

    assert head
    assert re.search(r"\bWhy\b|so a block takes|would cost", head[0], re.IGNORECASE)
    assert len(head[0].split()) > 60


@pytest.mark.parametrize("name", KERNELS)
@each_architecture
def test_a_kernel_compiles_to_a_cubin_without_spills(name, architecture):
    cubin, log = compiled(name, f"sm_{architecture}")

    used = nvrtc.used(log)
    assert cubin[:4] == b"\x7fELF"
    assert used.spills == 0
    assert 0 < used.registers * MOST <= REGISTERS
    written = json.loads((DOCS / "performance" / "kernels.json").read_text(encoding="utf-8"))
    assert written["options"] == list(FLAGS)
    if written["nvrtc"] == nvrtc.version():
        of_docs = written["kernels"][name][str(architecture)]["registers"]
        assert of_docs == used.registers, "run python docs/kernels.py"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="There is no nvcc.")
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    "architecture", [a if a == 90 else pytest.param(a, marks=pytest.mark.slow) for a in ARCHITECTURES]
)
def test_nvcc_says_the_same(name, architecture, tmp_path):
    where = ["-cubin", f"-arch=sm_{architecture}", "-o", str(tmp_path / "made.cubin")]
    done = subprocess.run(
        ["nvcc", *options(), "-Xptxas", "-v", *where, str(FOLDER / f"{name}.cu")],
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert nvrtc.used(done.stderr).registers > 0
    assert nvrtc.used(done.stderr).spills == 0


@pytest.mark.parametrize("name", KERNELS)
def test_no_subnormal_number_is_flushed(name):
    """CuPy's own way of compiling would add -ftz=true; that it would matter is seen in `widen`."""
    ours, _ = compiled(name, "compute_90")
    flushed, _ = compiled(name, "compute_90", [o for o in options() if "ftz" not in o] + ["-ftz=true"])

    assert b".ftz" not in ours
    assert (b".ftz" in flushed) == (name == "widen")


class TestCompiledOnce:
    @pytest.fixture(autouse=True)
    def _cupy(self, monkeypatch, tmp_path):
        with installed(monkeypatch):
            monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
            COMPILED.clear()
            yield

    def test_with_options_of_our_own(self):
        kept("widen", "90")

        assert COMPILED == [("widen.cu", options(), "90")]
        assert "-ftz=false" in options()
        assert not any("ftz=true" in option for option in options())

    def test_a_cubin_is_kept_for_its_architecture(self):
        first = kept("widen", "90")

        assert kept("widen", "90") == first
        assert kept("widen", "80") != first
        assert len(COMPILED) == 2

    def test_a_changed_header_is_compiled_anew(self, monkeypatch):
        first = kept("kmeans", "90")
        monkeypatch.setattr("loramerge.cuda.load.options", lambda: (*options(), "-DHEADERS=1u"))

        assert kept("kmeans", "90") != first

    def test_a_folder_that_cannot_be_written_is_no_obstacle(self, monkeypatch, tmp_path):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "file" / "cache"))

        assert kept("widen", "90").exists()


@pytest.fixture(name="kernels")
def _kernels(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import kernels

    return kernels


@pytest.mark.parametrize(
    ("capability", "registers", "threads", "shared", "wanted"),
    [
        (90, 32, 1024, 0, (2, "threads")),
        (90, 255, 256, 0, (1, "registers")),
        (86, 16, 32, 0, (16, "blocks")),
        (75, 16, 32, 33 << 10, (1, "shared memory")),
        (80, 16, 32, 81 << 10, (2, "shared memory")),
    ],
)
def test_what_a_multiprocessor_holds(kernels, capability, registers, threads, shared, wanted):
    assert kernels.resident(kernels.CHIPS[capability], registers, threads, shared) == wanted


def test_the_budget_is_written_for_every_architecture(kernels):
    assert set(kernels.CHIPS) == set(ARCHITECTURES)
    assert len(kernels.rows()) == 3 * len(ARCHITECTURES)
    assert all(int(row[6].split(",")[0]) >= 1 for row in kernels.rows())
