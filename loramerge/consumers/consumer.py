"""What a consumer of adapters is: its rules about files, and its scaling rule, as pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from loramerge.consumers.facts import SPECIAL, Facts, Module
from loramerge.errors import printable

Effect = Literal["rejects", "scales", "ignores"]
Scale = Callable[[Mapping[str, Any], Module], float]
CLOSE = 1e-3  # an alpha may be stored in bfloat16


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a consumer does with an adapter other than what was meant.

    Args:
        consumer: its name in `CONSUMERS`.
        effect: ``rejects`` it; ``scales`` it wrongly, or ``ignores`` a part of it, without saying so.
        sentence: what happens, and why.   mend: a command to paste, or what else to do.
    """

    consumer: str
    effect: Effect
    sentence: str
    mend: str = ""

    def to_dict(self) -> dict[str, str]:
        return {"effect": self.effect, "sentence": self.sentence, "mend": self.mend}


@dataclass(frozen=True, eq=False)
class Consumer:
    """A program that loads adapters.

    Args:
        name: as in ``--for``.   title: as it calls itself.   version: the one whose code was read.
        dialects: the tensor names that it reads.   folder: it wants a folder with a config.
        scale: (config, module) -> the factor of ``up @ down`` that it uses.
        rules: its own findings, beyond those that all share.
        rejects, heeds: which of `SPECIAL` it refuses, and which it carries out; it ignores the others.
        patterns: it reads rank and alpha patterns.   max_rank: that it loads, where nobody tells it another.
        rank_option, rank_choices: the option by which one tells it, and the values that it may have.
        types: PEFT's kinds of adapters that it knows.
    """

    name: str
    title: str
    version: str
    dialects: tuple[str, ...]
    folder: bool
    scale: Scale
    rules: Callable[[Facts], Iterator[Finding]]
    rejects: frozenset[str] = frozenset()
    heeds: frozenset[str] = frozenset()
    patterns: bool = False
    max_rank: int | None = None
    rank_option: str = ""
    rank_choices: tuple[int, ...] = ()
    types: frozenset[str] = frozenset({"LORA"})

    def findings(self, facts: Facts, max_rank: int | None = None) -> list[Finding]:
        """All that is to say of an adapter; nothing if it loads as it was meant."""
        if facts.dialect not in self.dialects:
            return [self._foreign(facts)]
        if facts.folder and facts.dialect == "peft" and facts.peft_type not in self.types:
            kind = printable(facts.peft_type, 40)
            return [self.rejecting(f"it knows no adapter of type {kind}", facts.combine(self.name))]
        found = [*self._bare(facts), *self._special(facts), *self.rules(facts), *self._wrong_scale(facts)]
        return found + self._too_wide(facts, max_rank or self.max_rank)

    def rejecting(self, why: str, mend: str = "") -> Finding:
        return Finding(self.name, "rejects", f"{self.title} rejects it: {why}.", mend)

    def ignoring(self, what: str, mend: str = "") -> Finding:
        return Finding(self.name, "ignores", f"{self.title} ignores {what}.", mend)

    def _foreign(self, facts: Facts) -> Finding:
        some = printable(next(iter(facts.tensors), "none"), 80)
        names = " and ".join(self.dialects)
        whose = "nobody's" if facts.dialect == "unknown" else f"{facts.dialect}'s"
        sentence = (
            f"{self.title} finds nothing to load: it reads the names of {names}, and {some} is {whose}."
        )
        mend = facts.unread if facts.dialect == "unknown" else facts.convert(self.dialects[0])
        return Finding(self.name, "rejects", sentence, mend)

    def _bare(self, facts: Facts) -> Iterator[Finding]:
        if self.folder and not facts.folder:
            yield self.rejecting(
                "it loads a folder with an adapter_config.json, and this is one file",
                facts.combine(self.name),
            )

    def _special(self, facts: Facts) -> Iterator[Finding]:
        for setting in facts.bent:
            value = printable(facts.config[setting], 40)
            if setting in self.rejects:
                yield self.rejecting(f"{setting} is {value}", self._without(setting, facts))
            elif setting not in self.heeds:
                lost = f"{setting} ({value}), and with it {SPECIAL[setting]}"
                yield self.ignoring(lost, self._without(setting, facts))

    def _without(self, setting: str, facts: Facts) -> str:
        if setting == "init_lora_weights":
            start = f"--initial {printable(facts.path)}=START"
            return facts.combine(self.name, start)
        if setting == "lora_bias":
            return "train it without lora_bias; loramerge keeps these biases"
        if setting == "bias" and not facts.others:
            return facts.combine(self.name)
        return facts.without_others(self.name)

    def _wrong_scale(self, facts: Facts) -> Iterator[Finding]:
        factors = {m.place: self.scale(facts.config, m) / m.scale for m in facts.modules if m.scale}
        wrong = {place: f for place, f in factors.items() if not math.isclose(f, 1, rel_tol=CLOSE)}
        if not wrong:
            return
        why = self._unheeded(facts)
        share = "" if len(wrong) == len(factors) else f"in {len(wrong)} of {len(factors)} modules "
        sentence = f"{self.title} {why}: the adapter would act {share}{_strength(wrong)}."
        yield Finding(self.name, "scales", sentence, facts.combine(self.name))

    def _unheeded(self, facts: Facts) -> str:
        """Which of the settings that decide the scale it does not read."""
        if not self.folder:
            return "reads no adapter_config.json"
        settings = ["use_rslora", *([] if self.patterns else ["rank_pattern", "alpha_pattern"])]
        said = [setting for setting in settings if facts.config.get(setting)]
        return f"ignores {' and '.join(said)}" if said else "scales otherwise"

    def _too_wide(self, facts: Facts, limit: int | None) -> list[Finding]:
        patterns = facts.config.get("rank_pattern")
        listed = [r for r in patterns.values() if isinstance(r, int)] if isinstance(patterns, dict) else []
        widest = max([*facts.ranks.values(), *listed, *(m.rank for m in facts.modules)], default=0)
        if limit is None or widest <= limit:
            return []
        whose = f"its default {self.rank_option}" if limit == self.max_rank else "the limit given"
        smaller = facts.combine(self.name, "" if limit == self.max_rank else f"--max-rank {limit}")
        wider = next((n for n in self.rank_choices if n >= widest), None)
        if facts.unread or not self.rank_option or (self.rank_choices and wider is None):
            mend = smaller
        else:
            mend = f"start it with {self.rank_option} {wider or widest}, or make it smaller: {smaller}"
        return [self.rejecting(f"rank {widest} is above {limit}, {whose}", mend)]


def _strength(factors: Mapping[str, float]) -> str:
    """Words for factors that are not 1.

    >>> _strength({"q": 0.5, "v": 0.5}), _strength({"q": 4.0, "v": 0.5})
    ('2 times too weak', 'from 2 times too weak (q) to 4 times too strong (v)')
    """
    ordered = sorted(factors, key=lambda place: factors[place])
    least, most = ordered[0], ordered[-1]
    if math.isclose(factors[least], factors[most], rel_tol=CLOSE):
        return _times(factors[least])
    ends = (f"{_times(factors[place])} ({printable(place, 80)})" for place in (least, most))
    return "from {} to {}".format(*ends)


def _times(factor: float) -> str:
    if factor == 0:
        return "not at all"
    if factor < 0:
        return f"{abs(factor):.3g} times as strong, with the wrong sign"
    return f"{1 / factor:.3g} times too weak" if factor < 1 else f"{factor:.3g} times too strong"
