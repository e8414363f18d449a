"""Run the sections named on the command line (all by default), print one table, write JSON.

    python -m benchmarks.speed [--work DIR] [--json FILE] [--mergekit PYTHON] [--size 4096] [SECTION ...]

Needs the `test` extra (torch and PEFT are measured too) and about 6 GB in DIR. Ratios are from this one run;
on a machine that does other work, walls wander, CPU seconds less.
"""

from __future__ import annotations

import argparse
import compileall
import json
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

import loramerge
from benchmarks.speed import coefficients, growth, memory, models, peers, routing, sections, span
from benchmarks.speed.elementwise import elementwise
from benchmarks.speed.sections import Row
from loramerge.arrays.backend import keep_freed_memory

SECTIONS = (
    "start",
    "kmeans",
    "module",
    "files",
    "reweight",
    "floor",
    "curve",
    "layer70b",
    "coefficients",
    "elementwise",
    "span",
    "models",
    "growth",
    "memory",
    "routing",
    "peft",
    "mergekit",
)


def rows(names: list[str], work: Path, options: argparse.Namespace) -> Iterator[Row]:
    """The rows of these sections, in order; `files` reuses the dense SVD of `module`."""
    dense = None
    if "start" in names:
        yield from sections.start_up(work)
    if "kmeans" in names:
        yield from sections.clusters()
    if "module" in names or "files" in names:
        for row in sections.one_module(options.size):
            dense = dense or row.cost
            yield row
    if "files" in names and dense is not None:
        yield from sections.files_to_files(work, dense)
    if "reweight" in names:
        yield from sections.reweighting(work)
    if "floor" in names:
        yield from sections.floor(work)
    if "curve" in names:
        yield from sections.curve(work, (2, 4, 8, 16, 32, 64)[: options.steps])
    if "layer70b" in names:
        yield from sections.one_layer_70b(work)
    if "coefficients" in names:
        yield from coefficients.coefficients(work)
    if "elementwise" in names:
        yield from elementwise(work)
    if "span" in names:
        yield from span.rows(work)
    if "models" in names:
        yield from models.rows(work, options.size)
    if "growth" in names:
        yield from growth.rows(work)
    if "memory" in names:
        yield from memory.rows(work)
    if "routing" in names:
        yield from routing.rows(work)
    if "peft" in names:
        yield from peers.peft(work)
    if "mergekit" in names and options.mergekit:
        yield from peers.mergekit(work, options.mergekit)


def line(row: Row) -> str:
    """A row of a Markdown table."""
    memory = f"{row.cost.anonymous / 1e6:.0f} MB" if row.cost.anonymous else ""
    ratio = "" if row.ratio is None else f"{row.ratio:,.2g}" if row.ratio < 10 else f"{row.ratio:,.0f}"
    against = f"{ratio} × {row.against}" if row.against else ""
    return f"| {row.name} | {row.cost.wall:.3f} | {row.cost.cpu:.3f} | {memory} | {against} | {row.goal} |"


def main() -> None:
    """Parse, run, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed")
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), metavar="SECTION")
    parser.add_argument(
        "--work", type=Path, help="where the adapters are written; a temporary folder by default"
    )
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--mergekit", help="python of an environment with mergekit 0.1.5")
    parser.add_argument("--size", type=int, default=4096, help="of the dense SVD")
    parser.add_argument("--steps", type=int, default=6, help="points of the curve: 2, 4, 8 … adapters")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    keep_freed_memory()  # as the command line does
    compileall.compile_dir(Path(loramerge.__file__).parent, quiet=1)  # as pip does when it installs
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}"
    print(f"{platform.machine()}, {sections.cores()} cores, {versions}\n")
    print("| what | wall s | CPU s | anonymous | times cheaper than | goal |\n|---|---|---|---|---|---|")
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(exist_ok=True)
        for row in rows(options.sections, work, options):
            found.append(row)
            print(line(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in found], indent=2) + "\n")


if __name__ == "__main__":
    main()
