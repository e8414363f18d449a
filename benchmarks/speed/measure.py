"""Timing: whole processes by the operating system's accounts, calls by medians of repeats."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cost:
    """Seconds of wall clock and of CPU, and the peak of anonymous memory in bytes (0: not taken)."""

    wall: float
    cpu: float
    anonymous: int = 0


def process(*command: str | Path, repeats: int = 3) -> Cost:
    """The median run of a whole process; its peak of anonymous memory over all runs."""
    runs = [_process([str(word) for word in command]) for _ in range(repeats)]
    middle = sorted(runs, key=lambda cost: cost.wall)[len(runs) // 2]
    return Cost(middle.wall, middle.cpu, max(run.anonymous for run in runs))


def loramerge(*arguments: str | Path, repeats: int = 3) -> Cost:
    """The same for our command line."""
    return process(sys.executable, "-m", "loramerge", *arguments, repeats=repeats)


def _process(command: list[str]) -> Cost:
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak: list[int] = [0]
    watcher = threading.Thread(target=_watch, args=(child, peak))
    watcher.start()
    assert child.stderr is not None
    words = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    watcher.join()
    if child.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{words.decode()}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, peak[0])


def _watch(child: subprocess.Popen[bytes], peak: list[int]) -> None:
    """Sample the anonymous memory of a process (Linux); 0 elsewhere."""
    path = Path(f"/proc/{child.pid}/status")
    while child.returncode is None:
        try:
            lines = path.read_text().splitlines()
        except OSError:
            return
        for line in lines:
            if line.startswith("RssAnon"):
                peak[0] = max(peak[0], 1024 * int(line.split()[1]))
        time.sleep(0.005)


def call(work: Callable[[], Any], repeats: int = 5) -> Cost:
    """The median wall and CPU time of a call in this process."""
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return Cost(statistics.median(walls), statistics.median(cpus))
