"""`--memory` held against the most that a process takes: many sources by `core`, eight by each method."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from benchmarks.speed.measure import Cost
from benchmarks.speed.sections import Row
from benchmarks.speed.shapes import write
from loramerge.algorithms import METHODS

MODULES = {f"model.layers.{n}.self_attn.q_proj": (1024, 1024) for n in range(32)}
CORE = ((16, "200MB"), (32, "1GB"))  # sources of rank 16 -> what is asked for
ASKED = "100MB"
Words = tuple[str | Path, ...]


def rows(where: Path) -> Iterator[Row]:
    """Peaks of whole processes, by the accounts of the operating system (Linux counts in kB)."""
    sources = [_source(where, seed) for seed in range(32)]
    yield Row("a process of ours that merges nothing", _cost(("methods", "svd")))
    for count, asked in CORE:
        cost = _merge(sources[:count], where, "core", asked)
        yield Row(f"32 modules, {count}×r16, core, --memory {asked}", cost, goal=f"≤ {asked} and that")
    for name, cls in METHODS.items():
        traits = cls().traits
        given = [sources[0]] * 2 if traits.units == "shared" else sources[: min(8, traits.most or 8)]
        cost = _merge(given, where, name, ASKED)
        yield Row(f"32 modules, {len(given)}×r16, {name}, --memory {ASKED}", cost, goal=f"≤ {ASKED} and that")


def _source(where: Path, seed: int) -> Path:
    folder = where / f"memory-{seed}"
    return folder if folder.exists() else write(folder, MODULES, seed)


def _merge(sources: list[Path], where: Path, method: str, memory: str) -> Cost:
    rank = ("--rank", "16") if any(each.name == "rank" for each in fields(METHODS[method])) else ()
    weights = ("--weights", ",".join("1" for _ in sources))  # `sg` wants to be told some
    asked = ("--method", method, *rank, *weights, "--memory", memory, "--threads", "2")
    return _cost(("combine", *sources, *asked, "-o", where / "out", "--overwrite", "-q"))


def _cost(words: Words) -> Cost:
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "loramerge", *map(str, words)], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(map(str, words))} failed")
    return Cost(time.perf_counter() - start, used.ru_utime + used.ru_stime, 1024 * used.ru_maxrss)
