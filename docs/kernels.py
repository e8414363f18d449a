"""What each kernel takes of a multiprocessor, from its cubins. `python docs/kernels.py` compiles them anew.

The numbers of ptxas lie in performance/kernels.json, so that the table can be checked where no compiler is.
What is
resident at once follows from them: registers go to warps in portions, shared memory to blocks with a kilobyte
more.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
NUMBERS = ROOT / "docs" / "performance" / "kernels.json"
REGISTERS, PORTION, WARP = 65536, 256, 32  # of a multiprocessor; given out to a warp at a time


class Chip(NamedTuple):
    """What a multiprocessor holds: threads, blocks, kB of shared memory; one block may have `block`."""

    threads: int
    blocks: int
    shared: int
    block: int


CHIPS = {  # by compute capability, from the table of technical specifications in the CUDA programming guide
    75: Chip(1024, 16, 64, 64),
    80: Chip(2048, 32, 164, 163),
    86: Chip(1536, 16, 100, 99),
    89: Chip(1536, 24, 100, 99),
    90: Chip(2048, 32, 228, 227),
    100: Chip(2048, 32, 228, 227),
    120: Chip(1536, 24, 100, 99),
}


class Fit(NamedTuple):
    """Blocks at once on a multiprocessor, and what they are bounded by."""

    blocks: int
    by: str


def resident(chip: Chip, registers: int, threads: int, shared: int) -> Fit:
    """How many blocks a multiprocessor holds.

    >>> resident(CHIPS[90], 30, 256, 0)
    Fit(blocks=8, by='threads')
    """
    warps = threads // WARP
    of_warp = -(-registers * WARP // PORTION) * PORTION
    bounds = {
        "threads": chip.threads // threads,
        "blocks": chip.blocks,
        "registers": REGISTERS // of_warp // warps,
        "shared memory": (chip.shared << 10) // (shared + 1024),
    }
    by = min(bounds, key=lambda name: bounds[name])
    return Fit(bounds[by], by)


def cases(chip: Chip) -> list[tuple[str, str, int, int]]:
    """Kernel, what it works on, threads and bytes of dynamic shared memory of a block."""
    from loramerge.cuda.kmeans import layout
    from loramerge.cuda.widen import THREADS

    found = [("widen", "any matrix", THREADS, 0)]
    for units, k, trials in ((128, 16, 4), (512, 64, 6)):
        plan = layout(units, k, trials, chip.block << 10)
        where = "on the chip" if plan.kernel_on_chip else "in global memory"
        found.append(("kmeans", f"{units} units, k = {k}, matrix {where}", plan.threads, plan.shared))
    return found


def rows() -> list[list[str]]:
    used = json.loads(NUMBERS.read_text(encoding="utf-8"))["kernels"]
    found = []
    for architecture, chip in CHIPS.items():
        for name, what, threads, shared in cases(chip):
            own = used[name][str(architecture)]
            total = shared + own["shared"]
            fit = resident(chip, own["registers"], threads, total)
            share = fit.blocks * threads / chip.threads
            memory = f"{total / 1024:.0f} kB" if total else "none"
            counts = own["registers"], own["spills"], threads
            bound = f"{fit.blocks}, by {fit.by}", f"{share:.0%}"
            found.append([f"sm_{architecture}", f"`{name}`, {what}", *map(str, counts), memory, *bound])
    return found


HEAD = ["", "kernel", "registers", "spilled bytes", "threads", "shared memory", "blocks at once", "occupancy"]


def kernels_table() -> str:
    """One row an architecture and kernel."""
    lines = [HEAD, ["---"] * len(HEAD), *rows()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks.speed.nvrtc import measured
    from loramerge.cuda.load import KERNELS

    NUMBERS.parent.mkdir(exist_ok=True)
    NUMBERS.write_text(json.dumps(measured(KERNELS), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
