"""What a consumer of adapters is: its rules about files, and its scaling rule, as pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from loramerge.consumers.facts import SPECIAL, Facts, Module
from loramerge.errors import printable

Effect = Literal["rejects", "scales", "ignores"]
Scale = Callable[[Mapping[str, Any], Module], float]
REWRITE = "rewrite"  # stands for the command, which is written when all findings are known
UNMENDED = {  # what `loramerge combine` keeps, so that it does not help
    "lora_bias": "train it without lora_bias",
    "layer_replication": "merge it into its base model, and use that",
}
CLOSE = 1e-3  # an alpha may be stored in bfloat16


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a consumer does with an adapter other than what was meant.

    Args:
        consumer: its name in `CONSUMERS`.
        effect: ``rejects`` it; ``scales`` it wrongly, or ``ignores`` a part of it, without saying so.
        sentence: what happens, and why.   mend: what helps, in words.
        command: to paste: mends this and all else that the consumer finds. Empty where nothing does.
    """

    consumer: str
    effect: Effect
    sentence: str
    mend: str = ""
    command: str = ""

    def to_dict(self) -> dict[str, str]:
        said = {"effect": self.effect, "sentence": self.sentence}
        return said | {"mend": self.mend, "command": self.command}


@dataclass(frozen=True, eq=False)
class Consumer:
    """A program that loads adapters.

    Args:
        name: as in ``--for``.   title: as it calls itself.   version: the one whose code was read.
        dialects: the tensor names that it reads.   folder: it wants a folder with a config.
        scale: (config, module) -> the factor of ``up @ down`` that it uses.
        rules: its own findings, beyond those that all share.
        rejects, heeds: which of `SPECIAL` it refuses, and which it carries out; it ignores the others.
        needs: settings that must be there.
        keeps: it loads tensors beside the pairs, by their key.
        patterns: it reads rank and alpha patterns.   types: PEFT's kinds of adapters that it knows.
        max_rank: that it loads where nobody tells it another.
        rank_option, rank_choices: by which option one tells it, and the values that this may have.
        formats: of `combine --format`, those that it loads as they are meant, the best first.
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
    needs: tuple[str, ...] = ()
    keeps: Callable[[str], bool] = lambda key: False
    patterns: bool = False
    types: frozenset[str] = frozenset({"LORA"})
    max_rank: int | None = None
    rank_option: str = ""
    rank_choices: tuple[int, ...] = ()
    formats: tuple[str, ...] = ("peft",)

    def format_for(self, sources: Collection[str]) -> str | None:
        """The format to write from sources of these formats; None: theirs, which it loads."""
        own = set(sources)
        return None if len(own) == 1 and own <= set(self.formats) else self.formats[0]

    def converting(self, facts: Facts) -> str:
        """The command that converts an adapter to what it loads."""
        return f"loramerge convert --to {self.formats[0]} {facts.quoted} {self._beside(facts)}"

    def _beside(self, facts: Facts) -> str:
        """Where what is made of it would lie: a folder or a file, as it loads them."""
        return f"{facts.elsewhere(self.name)}{'' if self.folder else '.safetensors'}"

    def findings(self, facts: Facts, max_rank: int | None = None) -> list[Finding]:
        """All that is to say of an adapter; nothing if it loads as it was meant."""
        if facts.dialect not in self.dialects:
            return [self._foreign(facts)]
        limit = max_rank or self.max_rank
        if self.folder and facts.folder and facts.dialect == "peft" and facts.peft_type not in self.types:
            found = [self.rejecting(f"it knows no adapter of type {printable(facts.peft_type, 40)}")]
        else:
            special = list(self._special(facts))
            found = [*self._bare(facts), *self._lacking(facts), *special, *self.rules(facts)]
            if not any(each.effect == "rejects" for each in [*self._bare(facts), *special]):
                found += self._wrong_scale(facts)
            found += self._too_wide(facts, limit)
        return self._mended(found, facts, limit)

    def rejecting(self, why: str, mend: str = "", command: str | None = None) -> Finding:
        """Without words about what else to do, `loramerge combine --for` makes one that it loads."""
        return self._found("rejects", f"{self.title} rejects it: {why}.", mend, command)

    def ignoring(self, what: str, mend: str = "", command: str | None = None) -> Finding:
        return self._found("ignores", f"{self.title} ignores {what}.", mend, command)

    def scaling(self, why: str, factors: Mapping[str, float]) -> Iterator[Finding]:
        """A finding, if one of the factors by which it scales modules otherwise than is meant is not 1."""
        wrong = {place: f for place, f in factors.items() if not math.isclose(f, 1, rel_tol=CLOSE)}
        if not wrong:
            return
        share = "" if len(wrong) == len(factors) else f"in {len(wrong)} of {len(factors)} modules "
        said = f"{self.title} {why}: the adapter would act {share}{_strength(wrong)}."
        yield self._found("scales", said, "")

    def _found(self, effect: Effect, sentence: str, mend: str, command: str | None = None) -> Finding:
        if command is None:
            command = "" if mend else REWRITE
        return Finding(self.name, effect, sentence, mend, command)

    def _mended(self, found: list[Finding], facts: Facts, limit: int | None) -> list[Finding]:
        """With one command for all of them, if it mends them all."""
        if facts.unread:
            why = f"loramerge cannot rewrite it: {facts.unread}"
            return [replace(f, mend=why, command="") if f.command else f for f in found]
        if not all(f.command for f in found):
            return [replace(f, command="") for f in found]
        words = ["loramerge combine", facts.quoted, f"--for {self.name}"]
        if limit is not None and limit != self.max_rank:
            words.append(f"--max-rank {limit}")
        if facts.others:
            words.append(f"--extras {'first' if all(map(self.keeps, facts.others)) else 'drop'}")
        command = " ".join(filter(None, [*words, facts.options, f"-o {self._beside(facts)}"]))
        said = self._cost(facts)
        return [replace(f, command=command, mend=f.mend or said) for f in found]

    def _cost(self, facts: Facts) -> str:
        """What its user should know of the command."""
        said = ["A is its training alpha, or `rank` if the weights hold the scale"] * facts.asks_alpha
        lost = [key for key in facts.others if not self.keeps(key)]
        if lost:
            said.append(f"this leaves out what is no pair ({printable(lost[0], 80)} …)")
        return "; ".join(said)

    def _foreign(self, facts: Facts) -> Finding:
        some = printable(next(iter(facts.tensors), "none"), 80)
        names = " and ".join(self.dialects)
        whose = "of nobody known" if facts.dialect == "unknown" else f"of {facts.dialect}"
        sentence = (
            f"{self.title} finds nothing to load: it reads the names of {names}, and {some} is {whose}."
        )
        known = facts.dialect != "unknown"
        if not known or facts.unread:
            return Finding(self.name, "rejects", sentence, facts.unread)
        mend = f"if its modules have names there, `{self.converting(facts)}` makes one that it reads"
        return Finding(self.name, "rejects", sentence, mend)

    def _bare(self, facts: Facts) -> Iterator[Finding]:
        if self.folder and not facts.folder:
            yield self.rejecting("it loads a folder with an adapter_config.json, and this is one file")

    def _lacking(self, facts: Facts) -> Iterator[Finding]:
        for field in self.needs if facts.folder else ():
            if field not in facts.config:
                mend = "" if field == "target_modules" else "add it, as it was in training"
                yield self.rejecting(f"adapter_config.json does not give {field}", mend)

    def _special(self, facts: Facts) -> Iterator[Finding]:
        for setting in facts.bent:
            value = printable(facts.config[setting], 40)
            mend = UNMENDED.get(setting, "")
            if setting in self.rejects:
                yield self.rejecting(f"{setting} is {value}", mend)
            elif setting not in self.heeds:
                yield self.ignoring(f"{setting} ({value}), and with it {SPECIAL[setting]}", mend)

    def _wrong_scale(self, facts: Facts) -> Iterator[Finding]:
        known = [m for m in facts.modules if m.scale and math.isfinite(m.scale)]
        factors = {m.place: self.scale(facts.config, m) / m.scale for m in known if m.scale}
        yield from self.scaling(self._unheeded(facts), factors)

    def _unheeded(self, facts: Facts) -> str:
        """Which of the settings that decide the scale it does not read."""
        if not self.folder:
            return f"reads no {'adapter_config.json' if facts.folder else 'lora_adapter_metadata'}"
        settings = ["use_rslora", *([] if self.patterns else ["rank_pattern", "alpha_pattern"])]
        said = [setting for setting in settings if facts.config.get(setting)]
        return f"ignores {' and '.join(said)}" if said else "scales otherwise"

    def _too_wide(self, facts: Facts, limit: int | None) -> Iterator[Finding]:
        patterns = facts.config.get("rank_pattern")
        listed = [r for r in patterns.values() if isinstance(r, int)] if isinstance(patterns, dict) else []
        widest = max([*facts.ranks.values(), *listed, *(m.rank for m in facts.modules)], default=0)
        if limit is None or widest <= limit:
            return
        whose = f"its default {self.rank_option}" if limit == self.max_rank else "the limit given"
        enough = next((n for n in self.rank_choices if n >= widest), None)
        able = bool(self.rank_option) and not (self.rank_choices and enough is None)
        start = f"start it with {self.rank_option} {enough or widest}, or cut it to that rank" if able else ""
        yield self.rejecting(f"rank {widest} is above {limit}, {whose}", start, REWRITE)


def _strength(factors: Mapping[str, float]) -> str:
    """Words for factors that are not 1.

    >>> _strength({"q": 0.5, "v": 0.5}), _strength({"q": 4.0, "v": 0.5})
    ('2 times too weak', 'from 2 times too weak (v) to 4 times too strong (q)')
    """
    ordered = sorted(factors, key=lambda place: factors[place])
    least, most = ordered[0], ordered[-1]
    if math.isclose(factors[least], factors[most], rel_tol=CLOSE):
        return _times(factors[least])
    ends = (f"{_times(factors[place])} ({printable(place, 80)})" for place in (least, most))
    return "from {} to {}".format(*ends)


def _times(factor: float) -> str:
    if factor <= 0:
        return "not at all" if factor == 0 else f"{-factor:.3g} times as strong, with the wrong sign"
    return f"{1 / factor:.3g} times too weak" if factor < 1 else f"{factor:.3g} times too strong"
