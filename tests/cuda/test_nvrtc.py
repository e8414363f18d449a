"""Every kernel compiles for every generation of GPUs, and keeps its numbers in registers."""

import re

import pytest

from loramerge.cuda.kmeans import MOST
from loramerge.cuda.load import FOLDER, KERNELS
from tests.cuda.nvrtc import compiled

ARCHITECTURES = [75, 80, 86, 89, 90, 100, 120]
QUICK = {75, 90}
REGISTERS = 65536  # of a multiprocessor, which one block must fit into


def test_every_source_is_a_kernel_of_the_list():
    assert {path.stem for path in FOLDER.glob("*.cu")} == set(KERNELS)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    "architecture", [a if a in QUICK else pytest.param(a, marks=pytest.mark.slow) for a in ARCHITECTURES]
)
def test_a_kernel_compiles_to_a_cubin_without_spills(name, architecture):
    cubin, log = compiled(name, architecture)

    assert cubin[:4] == b"\x7fELF"
    assert "0 bytes spill stores, 0 bytes spill loads" in log
    registers = re.search(r"Used (\d+) registers", log)
    assert registers
    assert int(registers[1]) * MOST <= REGISTERS
