"""DMoERM: one pair for each capability of a reward model, with heads that go along."""

from __future__ import annotations

import re

import numpy as np

from loramerge.routing.bank import Layout
from loramerge.routing.gates.gate import Gate
from loramerge.routing.gates.task import Task
from loramerge.routing.imports.system import Given, Parts, Stored, System, matrix, read

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
        return tuple(sorted(part.partition(".")[2] for part in parts if part.startswith("lora_A.")))

    def layout(self, parts: Parts, given: Given) -> Layout:
        names = self.experts(parts, given)
        ranks = tuple(parts[f"lora_A.{name}"].shape[0] for name in names)
        outs, _ = matrix(parts[f"lora_B.{names[0]}"], given.where)
        return Layout((outs, parts[f"lora_A.{names[0]}"].shape[1]), ranks)

    def stored(self, parts: Parts, given: Given) -> Stored:
        names = self.experts(parts, given)
        downs = [read(parts[f"lora_A.{name}"]) for name in names]
        pairs = zip(names, downs, strict=True)
        ups = [read(parts[f"lora_B.{name}"]) * given.scale(len(down)) for name, down in pairs]
        return Stored(np.concatenate(ups, axis=1), np.concatenate(downs), {})

    def carries(self, key: str) -> bool:
        return HEAD.fullmatch(key) is not None
