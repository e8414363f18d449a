"""The merge on a GPU: one command, one table, JSON.

    python -m benchmarks.speed.gpu [--work DIR] [--json FILE] [--device cuda] [--small]

Under eight minutes on an H200, with about 1 GB in DIR. Order of the measurements: what decides first. With
`--device cpu --small` it runs the same lines anywhere, to see that they run. Those numbers mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import loramerge as lm
from benchmarks.speed.sections import sources
from benchmarks.speed.shapes import LAYER_7B, LLAMA_7B, Shapes
from loramerge.algorithms import find as method_named
from loramerge.algorithms.families.kmeans import cluster
from loramerge.arrays import linalg
from loramerge.arrays.backend import cupy
from loramerge.cuda import Gpu, find
from loramerge.request.effort import Effort

BUS, MEMORY = 50e9, 4.3e12  # bytes a second of PCIe 5 and of an H200's memory, for the floors


@dataclass(frozen=True)
class Row:
    """One line: milliseconds, the goal, and the share of the floor that was reached."""

    name: str
    ms: float
    goal: str = ""
    floor: str = ""


class Bench:
    """Where it runs and how long a call takes there."""

    def __init__(self, device: str, small: bool) -> None:
        self.gpu: Gpu | None = find(device)
        self.device, self.small = device, small
        self.shapes: Shapes = LAYER_7B if small else LLAMA_7B

    def there(self, array: Any) -> Any:
        return cupy().asarray(array) if self.gpu else array

    def ms(self, work: Callable[[], Any], repeats: int = 5) -> float:
        """The median of a few calls, the first left out: it compiles and fills pools."""
        walls = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            work()
            if self.gpu:
                cupy().cuda.Device().synchronize()
            walls.append(1e3 * (time.perf_counter() - start))
        return statistics.median(walls[1:])


def products(bench: Bench) -> Iterator[Row]:
    """fp64 Grams, as the merge takes them."""
    for rank in (32, 128, 512):
        count = 2 if bench.small else 224
        down = bench.there(
            np.random.default_rng(0).standard_normal((count, rank, 256 if bench.small else 4096))
        )
        ms = bench.ms(lambda down=down: down @ down.swapaxes(1, 2))
        yield Row(
            f"Grams, {count} × ({rank} × 4096), fp64", ms, floor=f"{2 * down.size * rank / ms / 1e9:.1f} TF/s"
        )


def eigenproblems(bench: Bench) -> Iterator[Row]:
    for size in (16, 32, 33, 64, 128, 256):
        count = 2 if bench.small else 448
        half = np.random.default_rng(1).standard_normal((count, size, size))
        matrices = bench.there(half @ half.swapaxes(1, 2))
        yield Row(f"eigh, {count} × {size}²", bench.ms(lambda m=matrices: linalg.eigh(m), 3))


def clusters(bench: Bench) -> Iterator[Row]:
    modules, units, k = (2, 64, 8) if bench.small else (224, 512, 64)
    points = np.random.default_rng(2).standard_normal((modules, units, 256))
    host = points @ points.swapaxes(1, 2)
    kernel, live = bench.there(host), bench.there(np.ones((modules, units), bool))
    names = tuple(f"module {m}" for m in range(modules))

    def run() -> Any:
        return cluster(kernel, live, k, names, 0, 1)

    found, wanted = run(), cluster(host[:2], np.ones((2, units), bool), k, names[:2], 0, 1)
    assert (np.asarray(found.get() if bench.gpu else found)[:2] == wanted).all(), (
        "labels are those of the host"
    )
    yield Row(f"k-means, {modules} × ({units} units, k = {k})", bench.ms(run), "≤ 5 ms")


def compute(bench: Bench, work: Path, count: int = 8) -> Iterator[Row]:
    """All modules from factors on the device to P and Q: without files, output products and report."""
    opened = lm.plan(sources(work, count, bench.shapes), "svd", rank=16).sources
    effort = Effort(threads=1, memory=8e9, device=bench.device)
    held = [(units, units.grams()) for units in opened.batches(effort)]
    bytes_read = 2 * sum(16 * count * sum(shape) for shape in bench.shapes.values())
    for name in ("svd", "lego"):
        method = method_named(name)(rank=16)

        def run(method: Any = method) -> None:
            from loramerge.arrays.frames import framed

            for _, grams in held:
                method.remix(method.weigh(framed(grams, method.frame), np.ones(count)))

        floor = 1e3 * 3 * bytes_read / MEMORY
        ms = bench.ms(run, 3)
        yield Row(f"7B {count}×r16 {name}, compute", ms, "≤ 50 ms", f"{floor / ms:.1%} of memory bandwidth")


def files_to_files(bench: Bench, work: Path, count: int = 8) -> Iterator[Row]:
    """The whole merge in a warm process, against reading the files and sending them."""
    folders = sources(work, count, bench.shapes)
    files = [folder / "adapter_model.safetensors" for folder in folders]
    reading = bench.ms(lambda: [file.read_bytes() for file in files], 3)
    sending = 1e3 * sum(file.stat().st_size for file in files) / BUS
    for name in ("svd", "lego"):
        found = lm.combine(folders, name, rank=16, device=bench.device)
        wanted = lm.combine(folders, name, rank=16)
        target = next(iter(wanted.adapter))
        a, b = found.adapter[target].dense(), wanted.adapter[target].dense()
        assert np.linalg.norm(a - b) <= 1e-2 * np.linalg.norm(b), "both are rounded to bfloat16"
        ms = bench.ms(lambda name=name: lm.combine(folders, name, rank=16, device=bench.device), 3)
        yield Row(
            f"7B {count}×r16 {name}, files to memory",
            ms,
            "≤ 1.3 × files + bus",
            f"{ms / (reading + sending):.2f} ×",
        )


def peers(bench: Bench, count: int = 8) -> Iterator[Row]:
    """A well-written torch loop, and PEFT's way: one module of each shape, times how many there are."""
    import torch

    where = torch.device("cuda" if bench.gpu else "cpu")
    per_shape = {shape: list(bench.shapes.values()).count(shape) for shape in set(bench.shapes.values())}
    loop = dense = 0.0
    for (outs, ins), modules in per_shape.items():
        up = torch.randn(outs, 16 * count, device=where)
        down = torch.randn(16 * count, ins, device=where)

        def factored(up: Any = up, down: Any = down) -> None:
            (q, r), (p, s) = torch.linalg.qr(up), torch.linalg.qr(down.T)
            x, sigma, yt = torch.linalg.svd(r @ s.T)
            _ = q @ (x[:, :16] * sigma[:16]), yt[:16] @ p.T

        loop += modules * bench.ms(factored, 3)
        if not bench.small:
            delta = up @ down
            dense += modules * bench.ms(lambda d=delta: torch.linalg.svd(d, full_matrices=False), 1)
    yield Row("7B 8×r16, torch: QR and SVD of each module in a loop", loop, "svd compute ≥ 50 × faster")
    if dense:
        yield Row("7B 8×r16, PEFT's dense SVD, extrapolated", dense, "svd compute ≥ 10,000 × faster")


def rows(bench: Bench, work: Path) -> Iterator[Row]:
    for section in (products, eigenproblems, clusters, peers):
        yield from section(bench)
    yield from compute(bench, work)
    yield from files_to_files(bench, work)


def about(bench: Bench) -> dict[str, str]:
    """What ran it."""
    told = {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "device": bench.device,
    }
    if bench.gpu:
        known = cupy()
        properties = known.cuda.runtime.getDeviceProperties(bench.gpu.number)
        told |= {
            "gpu": properties["name"].decode(),
            "cupy": known.__version__,
            "driver": str(known.cuda.runtime.driverGetVersion()),
            "runtime": str(known.cuda.runtime.runtimeGetVersion()),
        }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    if options.json:  # what cannot be written is known before anything is measured
        options.json.parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.device, options.small)
    print(", ".join(f"{name} {value}" for name, value in about(bench).items()))
    print("| what | ms | goal | floor |\n| --- | ---: | --- | --- |")
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for row in rows(bench, options.work or Path(scratch)):
            found.append(asdict(row))
            print(f"| {row.name} | {row.ms:.2f} | {row.goal} | {row.floor} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"about": about(bench), "rows": found}, indent=1))


if __name__ == "__main__":
    main()
