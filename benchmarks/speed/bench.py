"""Where a benchmark of the GPU runs, how long a call takes there, and a line of its table."""

from __future__ import annotations

import datetime
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import loramerge as lm
from benchmarks.speed.shapes import LLAMA_7B, SMALL, Shapes
from loramerge.arrays.backend import cupy
from loramerge.cuda import Gpu, find
from loramerge.cuda.load import FLAGS


@dataclass(frozen=True)
class Row:
    """One line.

    Args:
        ms: milliseconds; None if it was not measured, and `found` says why.
        floor: the least that memory or files and bus allow, in milliseconds.
        goal, found: in words.   met: whether the goal is.
    """

    name: str
    ms: float | None
    floor: float | None = None
    goal: str = ""
    found: str = ""
    met: bool | None = None

    def line(self) -> str:
        """
        >>> Row("k-means", 4.0, 1.0, "≤ 5 ms", met=True).line()
        '| k-means | 4.00 | 25.0% | ≤ 5 ms | met |'
        """
        told = {None: "", True: "met", False: "missed"}[self.met]
        share = f"{self.floor / self.ms:.1%}" if self.floor and self.ms else ""
        ms = "" if self.ms is None else f"{self.ms:.2f}"
        return (
            f"| {self.name} | {ms} | {share} | {self.goal} | {'; '.join(filter(None, (told, self.found)))} |"
        )


class Bench:
    """A device and what was learnt of it: bytes a second of its memory and of the bus, times of methods."""

    def __init__(self, device: str, small: bool) -> None:
        self.gpu: Gpu | None = find(device)
        self.device, self.small = device, small
        self.shapes: Shapes = SMALL if small else LLAMA_7B
        self.memory = self.bus = float("nan")
        self.computed: dict[str, float] = {}

    def there(self, array: Any) -> Any:
        return cupy().asarray(array) if self.gpu else array

    def floor(self, size: float) -> float:
        """Milliseconds that so many bytes take of the memory."""
        return 1e3 * size / self.memory

    def judged(self, met: bool) -> bool | None:
        """Whether a goal is met; None where that is not what was measured."""
        return None if self.small or self.gpu is None else met

    def ms(self, work: Callable[[], Any], repeats: int = 5) -> float:
        """The median of a few calls, the first left out: it compiles and fills pools."""
        walls = []
        for _ in range(2 if self.small else repeats + 1):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            walls.append(1e3 * (time.perf_counter() - start))
        return statistics.median(walls[1:])

    def wait(self) -> None:
        if self.gpu:
            cupy().cuda.Device().synchronize()

    def about(self) -> dict[str, str]:
        """What ran it."""
        told = {
            "date": datetime.date.today().isoformat(),
            "loramerge": lm.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "device": self.device,
        }
        if self.gpu:
            known = cupy()
            properties = known.cuda.runtime.getDeviceProperties(self.gpu.number)
            told |= {
                "gpu": properties["name"].decode(),
                "cupy": known.__version__,
                "driver": str(known.cuda.runtime.driverGetVersion()),
                "runtime": str(known.cuda.runtime.runtimeGetVersion()),
                "options": " ".join(FLAGS),
            }
        return told
