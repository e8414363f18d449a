"""Task: the request names an expert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from loramerge.errors import UsageError, printable
from loramerge.routing.gates.gate import ByRequest, told
from loramerge.routing.gates.table import named


@dataclass(frozen=True, kw_only=True)
class Task(ByRequest):
    """One expert alone: the one whose task the request names.

        w_e = 1 if e is the task, else 0

    Source: the outer router of DMoERM, 2024, arXiv:2403.01197; task gates as in TaskExpert,
    arXiv:2307.15324. A table whose rows are those of the identity.

    Fails: where an input is of two tasks, or its task is not known.
    """

    asks: ClassVar[Literal["", "row", "prompt"]] = "row"
    tasks: Sequence[str] | None = told(None, "The name of each expert's task, by default the expert's own.")

    def settled(self, experts: int) -> Self:
        if isinstance(self.tasks, str) or not isinstance(self.tasks, Sequence | None):
            raise UsageError(f"tasks={printable(repr(self.tasks), 60)} must be a list of names.")
        tasks = tuple(map(str, self.tasks or map(str, range(experts))))
        if len(tasks) != experts or len(set(tasks)) != experts:
            raise UsageError(f"The {experts} experts need as many names of tasks, each another.")
        return replace(self, tasks=tasks)

    def row(self, name: str | None) -> tuple[float, ...]:
        names = list(self.tasks or ())
        rows = {task: tuple(float(task == other) for other in names) for task in names}
        return named(rows, name)
