"""The merge on a GPU: one command, one table, JSON.

    python -m benchmarks.speed.gpu [--work DIR] [--json FILE] [--device cuda] [--small]

Under eight minutes on an H200, with about 1 GB in DIR. Order of the measurements: what decides first. What
the clock leaves no time for is told, not guessed. With `--device cpu --small` it runs the same lines
anywhere, to see that they run; those numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import loramerge as lm
from benchmarks.speed.bench import Bench, Row
from benchmarks.speed.peers_gpu import peers
from benchmarks.speed.sections import sources
from loramerge.algorithms import find as method_named
from loramerge.algorithms.families.kmeans import _uniforms, centred, cluster
from loramerge.arrays import linalg
from loramerge.arrays.backend import cupy, host
from loramerge.arrays.frames import framed
from loramerge.request.effort import Effort

MINUTES = 7.5  # after which no section begins
SOURCES, RANK = 8, 16
MEMORY = 8e9  # bytes that a merge may use
JSON = Path(__file__).parents[2] / "docs" / "performance" / "gpu.json"


def memory(bench: Bench) -> Iterator[Row]:
    """Bytes a second: a copy on the device, and the bus from pinned memory. All floors are made of these."""
    size = 1 << (20 if bench.small else 28)
    held = bench.there(np.ones(size // 8))
    ms = bench.ms(held.copy)
    bench.memory = 2 * size / ms * 1e3
    yield Row("copy on the device", ms, found=f"{bench.memory / 1e9:.0f} GB/s")
    if bench.gpu is None:
        bench.bus = bench.memory
        return
    known = cupy()
    pinned = np.frombuffer(known.cuda.alloc_pinned_memory(size), np.float64, size // 8)
    ms = bench.ms(lambda: held.set(pinned, stream=known.cuda.get_current_stream()))
    bench.bus = size / ms * 1e3
    yield Row("from pinned memory to the device", ms, found=f"{bench.bus / 1e9:.1f} GB/s")


def products(bench: Bench) -> Iterator[Row]:
    """fp64 Grams, as the merge takes them."""
    for rank in (32, 128, 512):
        count, width = (2, 256) if bench.small else (224, 4096)
        down = bench.there(np.random.default_rng(0).standard_normal((count, rank, width)))
        ms = bench.ms(lambda down=down: down @ down.swapaxes(1, 2))
        speed = f"{2 * down.size * rank / ms / 1e9:.1f} TF/s"
        yield Row(f"Grams, {count} × ({rank} × {width}), fp64", ms, bench.floor(8 * down.size), found=speed)


def eigenproblems(bench: Bench) -> Iterator[Row]:
    for size in (16, 32, 33, 64, 128, 256):
        count = 2 if bench.small else 448
        half = np.random.default_rng(1).standard_normal((count, size, size))
        matrices = bench.there(half @ half.swapaxes(1, 2))
        ms = bench.ms(lambda m=matrices: linalg.eigh(m), 3)
        yield Row(f"eigh, {count} × {size}²", ms, bench.floor(16 * matrices.size))


def clusters(bench: Bench) -> Iterator[Row]:
    """The kernel alone, its draws on the device; and as a merge calls it, which draws on the host."""
    modules, units, k = (2, 64, 8) if bench.small else (224, 512, 64)
    points = np.random.default_rng(2).standard_normal((modules, units, 256))
    grams = points @ points.swapaxes(1, 2)
    kernel, live = bench.there(grams), bench.there(np.ones((modules, units), bool))
    names = tuple(f"module {m}" for m in range(modules))
    name = f"k-means, {modules} × ({units} units, k = {k})"

    def run() -> Any:
        return cluster(kernel, live, k, names, 0, 1)

    wanted = cluster(grams[:2], np.ones((2, units), bool), k, names[:2], 0, 1)
    assert (host(run())[:2] == wanted).all(), "labels are those of the host"
    if bench.gpu is not None:
        from loramerge.cuda.kmeans import clusters as launched

        middle = cupy().ascontiguousarray(centred(kernel, live))
        draws = bench.there(np.stack([_uniforms(names, k, "0/0")], axis=1))
        ms = bench.ms(lambda: launched(middle, live, draws))
        yield Row(name, ms, bench.floor(8 * grams.size), goal="≤ 5 ms", met=bench.judged(ms <= 5))
    yield Row(f"{name}, with its draws", bench.ms(run))


def compute(bench: Bench, work: Path) -> Iterator[Row]:
    """All modules from factors on the device to P and Q: without files, output products and report."""
    folders = sources(work, SOURCES, bench.shapes)
    opened = lm.plan(folders, "svd", rank=RANK, device=bench.device).sources
    effort = Effort(threads=1, memory=MEMORY, device=bench.device)
    held = [(units, units.grams()) for units in opened.batches(effort)]
    bytes_read = 2 * sum(RANK * SOURCES * sum(shape) for shape in bench.shapes.values())

    def grams() -> None:
        for units, _ in held:
            units.grams()

    first = bench.ms(grams, 3)
    yield Row(f"7B {SOURCES}×r{RANK}, Grams of what was sent", first, bench.floor(bytes_read))
    for name in ("svd", "lego"):
        method = method_named(name)(rank=RANK)

        def run(method: Any = method) -> None:
            for _, seen in held:
                method.remix(method.weigh(framed(seen, method.frame), np.ones(SOURCES)))

        ms = bench.ms(run, 3) + first
        bench.computed[name] = ms
        floor = bench.floor(3 * bytes_read)
        yield Row(
            f"7B {SOURCES}×r{RANK} {name}, compute", ms, floor, goal="≤ 50 ms", met=bench.judged(ms <= 50)
        )


def files_to_memory(bench: Bench, work: Path) -> Iterator[Row]:
    """The whole merge in a warm process, against reading and sending the files. No hash, no proof."""
    folders = sources(work, SOURCES, bench.shapes)
    files = [folder / "adapter_model.safetensors" for folder in folders]
    reading = bench.ms(lambda: [file.read_bytes() for file in files], 3)
    size = sum(file.stat().st_size for file in files)
    yield Row("reading the files", reading, found=f"{size / reading / 1e6:.1f} GB/s")
    least = reading + 1e3 * size / bench.bus
    for name in ("svd", "lego"):
        found = lm.combine(folders, name, rank=RANK, device=bench.device, memory=MEMORY)
        wanted = lm.combine(folders, name, rank=RANK)
        off = max(_off(found, wanted, target) for target in list(wanted.adapter)[:4])
        assert off <= 1e-2, "both are rounded to bfloat16"
        ms = bench.ms(
            lambda name=name: lm.combine(folders, name, rank=RANK, device=bench.device, memory=MEMORY), 3
        )
        times = ms / least
        yield Row(
            f"7B {SOURCES}×r{RANK} {name}, files to memory",
            ms,
            least,
            goal="≤ 1.3 × files + bus",
            found=f"{times:.2f} ×; {off:.1e} off the host's",
            met=bench.judged(times <= 1.3),
        )


def _off(found: lm.Merge, wanted: lm.Merge, target: Any) -> float:
    a, b = found.adapter[target].dense(), wanted.adapter[target].dense()
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def rows(bench: Bench, work: Path) -> Iterator[Row]:
    """Every row; what is left when the time is over stands there as not measured."""
    sections: Sequence[tuple[str, Callable[[], Iterator[Row]]]] = [
        ("memory and bus", lambda: memory(bench)),
        ("Grams", lambda: products(bench)),
        ("eigenproblems", lambda: eigenproblems(bench)),
        ("k-means", lambda: clusters(bench)),
        ("compute", lambda: compute(bench, work)),
        ("files to memory", lambda: files_to_memory(bench, work)),
        ("torch and PEFT", lambda: peers(bench, SOURCES, RANK)),
    ]
    start = time.monotonic()
    for name, section in sections:
        if time.monotonic() - start > 60 * MINUTES:
            yield Row(name, None, found="not measured: the time was over")
            continue
        try:
            yield from section()
        except ImportError as error:  # torch is no part of the package
            yield Row(name, None, found=f"not measured: {error}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path)
    parser.add_argument(
        "--json", type=Path, help=f"by default {JSON.name} under docs/performance; none with --small"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args(arguments)
    out = options.json or (None if options.small else JSON)
    if out:  # what cannot be written is known before anything is measured
        out.parent.mkdir(parents=True, exist_ok=True)
    try:
        bench = Bench(options.device, options.small)
    except lm.LoramergeError as error:
        sys.exit(str(error))
    print(", ".join(f"{name} {value}" for name, value in bench.about().items()))
    print("\n| what | ms | share of the floor | goal | found |\n| --- | ---: | ---: | --- | --- |")
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for row in rows(bench, options.work or Path(scratch)):
            found.append(asdict(row))
            print(row.line(), flush=True)
    if out:
        out.write_text(json.dumps({"about": bench.about(), "rows": found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
