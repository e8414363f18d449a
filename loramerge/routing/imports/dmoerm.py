"""DMoERM: one pair for each capability of a reward model, with heads that go along."""

from __future__ import annotations

import re

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.routing.bank import Layout
from loramerge.routing.gates.gate import Gate
from loramerge.routing.gates.task import Task
from loramerge.routing.imports.system import Given, Parts, Stored, System, read, side_by_side

HEAD = re.compile(r"(?:.+\.)?(?:base_value_head|final_value_head[12]|prelu|lora_value_heads\.\w+)\.\w+")


class DMoERM(System):
    """`lora_A.{task}`, `lora_B.{task}` beside the weights of the model; the request names the task.

    Heads are no low-rank units: the bundle carries them, and whoever runs it applies them. A .pth does not
    say its alpha.
    """

    name = "dmoerm"
    pattern = re.compile(r"(?P<path>.+)\.(?P<part>lora_[AB]\.\w+)\.weight", re.DOTALL)
    must = ()

    def gate(self, parts: Parts, given: Given) -> Gate:
        return Task(tasks=self.experts(parts, given))

    def experts(self, parts: Parts, given: Given) -> tuple[str, ...]:
        return tuple(sorted({part.partition(".")[2] for part in parts}))

    def layout(self, parts: Parts, given: Given) -> Layout:
        return side_by_side(self._pairs(parts, given), given.where)

    def stored(self, parts: Parts, given: Given) -> Stored:
        pairs = [(read(down), read(up)) for down, up in self._pairs(parts, given)]
        ups = [up * given.scale(len(down)) for down, up in pairs]
        return Stored(np.concatenate(ups, axis=1), np.concatenate([down for down, _ in pairs]), {})

    def _pairs(self, parts: Parts, given: Given) -> list[tuple[Tensor, Tensor]]:
        names = self.experts(parts, given)
        return [(given.part(parts, f"lora_A.{e}"), given.part(parts, f"lora_B.{e}")) for e in names]

    def carries(self, key: str) -> bool:
        return HEAD.fullmatch(key) is not None
