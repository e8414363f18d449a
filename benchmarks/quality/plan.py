"""What is trained, merged and compared: sizes of the benchmark, and its seeds in two halves.

Seeds of the one half serve every choice (methods, options, strengths of rules). The other half is opened
once, after the choice is frozen in choice.json. Both files are data of the repository.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RHO = (0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.1, 2.6)  # ‖λ merge‖ / mean ‖ΔW_t‖, for all alike


@dataclass(frozen=True, slots=True)
class Size:
    """How large a run is.

    Args:
        domains: names of `DOMAINS`.   seeds: how many of the half.   tasks: of each seed.
        counts: how many adapters are merged; beyond `tasks` there are several of a task.
        ranks: of the merge; 0 is no limit.   steps: of the training of an adapter and of a base.
        width: of the models.   held: samples of a task for tuning, and for the result.
        few: only the methods that --quick compares.
    """

    domains: tuple[str, ...]
    seeds: int
    tasks: int
    counts: tuple[int, ...]
    ranks: tuple[int, ...]
    steps: tuple[int, int]
    width: int = 48
    held: tuple[int, int] = (24, 100)
    few: bool = False


EASY, HARD = ("digits", "strings"), ("digits-conflict", "strings-conflict")
HEADS = ("digits-heads", "strings-heads")
FULL = Size((*EASY, *HARD, *HEADS), 8, 8, (2, 4, 8, 16, 32), (4, 8, 16, 0), (250, 2500))
QUICK = Size(EASY, 2, 8, (2, 8), (8, 0), (200, 1200), few=True)
TOY = Size(EASY, 1, 2, (2,), (4, 0), (2, 2), width=16, held=(8, 8), few=True)
COUNTS = {  # of adapters, in sets that are not merged in all numbers
    **dict.fromkeys(HARD, (2,)),  # one input has one answer, so no merge keeps many
    **dict.fromkeys(HEADS, (2, 8)),
}
REGIMES = ("shared A", "independent A")
MANY = 8  # adapters, above which only the best methods are run, at rank 8
BEST = 10


@dataclass(frozen=True, slots=True)
class Training:
    """One adapter: what it is trained on, and from which start."""

    domain: str
    regime: str
    seed: int
    task: int
    copy: int

    @property
    def start(self) -> int:
        """The seed of A: one for all adapters, or one for each."""
        own = 1 + self.task + 100 * self.copy + 10_000 * self.seed
        return 0 if self.regime == "shared A" else own


@dataclass(frozen=True, slots=True)
class Cell:
    """Adapters that are merged together; all methods are compared on it."""

    domain: str
    regime: str
    seed: int
    trainings: tuple[Training, ...]

    @property
    def count(self) -> int:
        return len(self.trainings)

    def apart(self) -> tuple[Training, ...]:
        """One training of each task: the others of it are asked the same."""
        return tuple({one.task: one for one in reversed(self.trainings)}.values())[::-1]


def half(name: str) -> list[int]:
    """The seeds for ``choosing`` or for ``reporting``."""
    return json.loads((HERE / "split.json").read_text())[name]


def frozen() -> dict[str, Any]:
    """What was chosen, before the reporting seeds are opened.

    Raises:
        SystemExit: nothing is.
    """
    if not (path := HERE / "choice.json").exists():
        raise SystemExit(
            f"The reporting seeds are closed: first commit {path.name} beside split.json. It says what was "
            'chosen on the other half: {"method": …, "options": …, "why": …}.'
        )
    return json.loads(path.read_text())


def cells(size: Size, seeds: list[int], pools: dict[str, int]) -> Iterator[Cell]:
    """Every set of adapters of these seeds; a seed draws its tasks from the pool of the domain."""
    import numpy as np

    for seed in seeds[: size.seeds]:
        for domain in size.domains:
            drawn = np.random.default_rng([seed, 1]).permutation(pools[domain])[: size.tasks].tolist()
            for regime in REGIMES:
                for count in COUNTS.get(domain, size.counts):
                    places = [divmod(n, len(drawn)) for n in range(count)]
                    each = [Training(domain, regime, seed, drawn[n], copy) for copy, n in places]
                    yield Cell(domain, regime, seed, tuple(each))
