"""What a consumer of adapters is: its rules about files, and its scaling rule, as pure functions.

They are written anew from reading its code, which tests run beside them: a copy would grow old unnoticed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.target import Kind
from loramerge.consumers import comfy_names
from loramerge.consumers.facts import SCALING, SPECIAL, Facts, Module
from loramerge.consumers.finding import CLOSE, Effect, Finding, strength
from loramerge.consumers.support import Support
from loramerge.errors import printable
from loramerge.formats.dialects import Dialect, named
from loramerge.formats.peft.exchange import KIND as TURNED
from loramerge.formats.peft.names import UNKNOWN
from loramerge.formats.wrappers import plainly, wrapped

Scale = Callable[[Mapping[str, Any], Module], float]
REWRITE = "rewrite"  # stands for the command, which is written when all are known; options may follow
UNMENDED = {  # what `loramerge combine` keeps, so that it does not help
    "lora_bias": "train it without lora_bias",
    "layer_replication": "merge it into its base model, and use that",
}
ELSEWHERE = "use PEFT, or leave these modules out with --exclude"
NOUNS: Mapping[Kind, str] = {"conv": "convolution", "expert": "fused experts"}
LANGUAGE = (
    "peft",
    "loralib",
    "sora",
    "wavllm",
    "omni",
    "clip-lora",
    "nola",
)  # formats of adapters for models of transformers, but for mlx-lm's own
IMAGE = (
    "kohya",
    "diffusers",
    "comfy",
    "xlabs",
    "bfl",
    "onetrainer",
    "cloneofsimo",
    "sam",
    "bare",
)  # … for image models
UNABLE = "loramerge cannot rewrite it: "  # in place of what helps, where nothing of ours does


@dataclass(frozen=True, eq=False)
class Consumer:
    """A program that loads adapters: the facts that its rules read, and that the documents are made of.

    Args:
        name: as in ``--for``.   title: as it calls itself.   version: the one whose code was read.
        dialects: the formats whose names it reads.   folder: it wants a folder with a config.
        scale: (config, module) -> the factor of ``up @ down`` that it uses. Its docstring says the rule.
        rules: its own findings, beyond those that all share.   remarks: what they are about, in words.
        formats: of `combine --format`, those that it loads as they are meant, the best first; at least one.
        asked: the formats for which `check` asks it where nobody says whom to ask.
        partly: format -> what it loads of it, in words, where that is not all.
        rejects, heeds: which of `SPECIAL` it refuses, and which it carries out; it ignores the others.
        needs: settings that must be there.   reads: which of `SCALING` it goes by.
        beside: the tensors that it loads beside the pairs: in words -> a regular expression for their keys.
        lacks: kinds of layers that it has no place for.   types: PEFT's kinds of adapters that it knows.
        max_rank: that it loads where nobody tells it another.
        untold: why nobody can tell what it makes of a file; "" where it can be told.
        models: which classes of models it has a place for; None if that is no matter.
        shards: whether it reads weights in several files; None if that is not known.
        lays: a format as it wants the merge of these adapters laid out in it.
        rank_option, rank_choices: by which option one tells it, and the values that this may have.
    """

    name: str
    title: str
    version: str
    dialects: tuple[str, ...]
    folder: bool
    scale: Scale
    rules: Callable[[Facts], Iterator[Finding]]
    formats: tuple[str, ...]
    asked: tuple[str, ...]
    partly: Mapping[str, str] = field(default_factory=dict)
    rejects: frozenset[str] = frozenset()
    heeds: frozenset[str] = frozenset()
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    beside: Mapping[str, str] = field(default_factory=dict)
    lacks: tuple[Kind, ...] = ()
    types: frozenset[str] = frozenset({"LORA"})
    max_rank: int | None = None
    rank_option: str = ""
    rank_choices: tuple[int, ...] = ()
    remarks: str = ""
    models: Support | None = None
    shards: bool | None = False
    untold: Callable[[Facts], str] = lambda facts: ""
    lays: Callable[[Dialect, Sequence[Adapter]], Dialect] = lambda dialect, adapters: dialect

    @property
    def patterns(self) -> bool:
        """Whether it reads a rank and an alpha for single modules."""
        return "rank_pattern" in self.reads

    def keeps(self, key: str) -> bool:
        """Whether it loads a tensor beside the pairs."""
        return any(re.fullmatch(pattern, key, re.DOTALL) for pattern in self.beside.values())

    def strength(self, facts: Facts, module: Module) -> float:
        """The factor of ``up @ down`` that it uses for a module of these files."""
        return self.scale(facts.settings(module), module)

    def format_for(self, sources: Collection[str]) -> str | None:
        """The format to write from sources of these formats; None: theirs, which it loads."""
        own = set(sources)
        return None if len(own) == 1 and own <= set(self.formats) else self.formats[0]

    def _beside(self, facts: Facts) -> str:
        """Where what is made of it would lie: a folder or a file, as it loads them."""
        return f"{facts.elsewhere(self.name)}{'' if self.folder else '.safetensors'}"

    def findings(self, facts: Facts, max_rank: int | None = None) -> list[Finding]:
        """All that is to say of an adapter; nothing if it loads as it was meant."""
        if facts.dialect not in self.dialects:
            return [self._foreign(facts)]
        limit = max_rank or self.max_rank
        if self.folder and facts.folder and facts.dialect == "peft" and facts.peft_type not in self.types:
            # and what stays true of a LoRA that is made of it: else a command is offered that is then refused
            lasting = [each for each in (*self._of_model(facts), *self.rules(facts)) if not each.command]
            found = [self.rejecting(_unknown_type(facts.peft_type)), *lasting]
        else:
            first = [*self._bare(facts), *self._special(facts)]
            ruled = list(self.rules(facts))
            unseen = [] if any(each.effect == "rejects" for each in ruled) else self._wrapped(facts)
            found = [*first, *unseen, *self._lacking(facts), *self._of_model(facts), *ruled]
            if not any(each.effect == "rejects" for each in (first if self.folder else found)):
                found += self._wrong_scale(facts)
            found += self._too_wide(facts, limit)
        # What contradicts itself is a finding of everybody who reads it: nobody knows what was meant.
        if facts.broken and not found:
            return [self._doubtful(facts)]
        if facts.empty and not found:
            return [self._idle(facts)]
        if not found:
            return list(self._untold(facts))
        return self._mended(found, facts, limit)

    def rejecting(self, why: str, mend: str = "", command: str | None = None) -> Finding:
        """Without words about what else to do, `loramerge combine --for` makes one that it loads."""
        return self._found("rejects", f"{self.title} rejects it: {why}.", mend, command)

    def ignoring(self, what: str, mend: str = "", command: str | None = None) -> Finding:
        return self._found("ignores", f"{self.title} ignores {what}.", mend, command)

    def unadapted(self, facts: Facts, seen: Callable[[str], bool] = lambda place: True) -> Iterator[Finding]:
        """What it says of kinds of layers that it has no place for, among the modules that it has `seen`."""
        for kind in self.lacks:
            if places := list(filter(seen, facts.of_kind(kind))):
                yield self.rejecting(f"it adapts no {NOUNS[kind]} ({printable(places[0])})", ELSEWHERE)

    def passing_over(self, keys: Sequence[str]) -> Iterator[Finding]:
        """What it says of tensors that it has no use for, if there are any."""
        if keys:
            count = "a tensor beside" if len(keys) == 1 else f"{len(keys)} tensors beside"
            yield self.ignoring(f"{count} the pairs ({printable(keys[0])})")

    def scaling(self, why: str, factors: Mapping[str, float]) -> Iterator[Finding]:
        """A finding, if one of the factors by which it scales modules otherwise than is meant is not 1."""
        wrong = {place: f for place, f in factors.items() if not math.isclose(f, 1, rel_tol=CLOSE)}
        if not wrong:
            return
        share = "" if len(wrong) == len(factors) else f"in {len(wrong)} of {len(factors)} modules "
        said = f"{self.title} {why}: the adapter would act {share}{strength(wrong)}."
        yield self._found("scales", said, "")

    def _of_model(self, facts: Facts) -> Iterator[Finding]:
        if self.place(facts) is False:
            whose = printable(" or ".join(facts.classes), 80)
            yield self.rejecting(f"it has no place for adapters of {whose}", "merge it into its base model")

    def place(self, facts: Facts) -> bool | None:
        """Whether it has a place for adapters of their model; None if that cannot be told."""
        if self.models is None:
            return True
        verdicts = {self.models.verdict(name) for name in facts.classes}
        return verdicts.pop() if len(verdicts) == 1 else None

    def _untold(self, facts: Facts) -> Iterator[Finding]:
        """Of what has no finding: what keeps us from saying that it loads."""
        why = ""
        if facts.unread and not (facts.plain and set(facts.bent) <= self.heeds):
            why = f"loramerge does not read it, so nobody has looked inside. {facts.unread}"
        elif facts.sharded and self.shards is None:
            why = "its weights are in shards, and whether all of them are read is not known."
        elif self.models is not None and self.place(facts) is None:
            why = f"{self.models.untold(facts.classes, f'{self.title} {self.version}')}."
        elif facts.scaled:
            some = printable(facts.scaled, 80)
            why = f"its factors are 8-bit floats with scales beside them ({some}), which it may not read."
        elif unclear := self.untold(facts):
            why = f"{unclear}."
        if why:
            sentence = f"{self.title} may or may not load it as it is meant: {why}"
            yield Finding(self.name, "unknown", sentence, "try it, and compare what comes out")

    def _found(self, effect: Effect, sentence: str, mend: str, command: str | None = None) -> Finding:
        if command is None:
            command = "" if mend else REWRITE
        return Finding(self.name, effect, sentence, mend, command)

    def _mended(self, found: list[Finding], facts: Facts, limit: int | None) -> list[Finding]:
        """With one command for all of them, if it mends them all."""
        if not found:
            return []
        # A command is offered only if it mends all that is found, and if the header shows that it can.
        if why := self._obstacle(facts, self.format_for([facts.dialect]) or facts.dialect):
            return [replace(f, mend=why, command="") if f.command else f for f in found]
        if not all(f.command for f in found):
            return [replace(f, command="") for f in found]
        words = ["loramerge combine", facts.quoted, f"--for {self.name}"]
        words += sorted({f.command.removeprefix(REWRITE).strip() for f in found})
        if limit is not None and limit != self.max_rank:
            words.append(f"--max-rank {limit}")
        unsure = self.name == "comfyui" and comfy_names.doubtful(facts.families)
        words += ["--allow-unknown"] * (self.place(facts) is None or unsure)
        if facts.full:  # `combine` writes full rank only where someone has said a size
            words.append("--energy 0.99" if limit is None else f"--rank {limit}")
        if facts.others:
            words.append(f"--extras {'drop' if self._lost(facts) else 'first'}")
        command = " ".join(filter(None, [*words, facts.options, f"-o {self._beside(facts)}"]))
        said = self._cost(facts)
        return [replace(f, command=command, mend=f.mend or said) for f in found]

    def _cost(self, facts: Facts, foreign: bool = False) -> str:
        """What its user should know of the command."""
        said = ["give its training alpha for A, or `rank` if the weights hold the scale"] * facts.asks_alpha
        said += ["its full rank is cut, and the report says how much is lost"] * (facts.full and not foreign)
        if lost := self._lost(facts):
            said.append(f"leave out all but the pairs ({printable(lost[0], 80)} …)")
        return "; ".join(said)

    def _lost(self, facts: Facts) -> list[str]:
        """The keys beside the pairs that it does not load, or that its format has no place for."""
        alike = self.format_for([facts.dialect]) is None
        return [key for key in facts.others if not (alike and self.keeps(key))]

    def _foreign(self, facts: Facts) -> Finding:
        some = printable(facts.example, 80)
        own = _listed([named(name).tool for name in self.dialects])
        what = named(facts.dialect).words
        whose = f"{some} is of no format that loramerge knows"
        if facts.dialect != UNKNOWN:
            whose = f"this is {what} ({some})"
        sentence = f"{self.title} finds nothing to load: it reads the names of {own}, and {whose}."
        known = "" if facts.dialect == UNKNOWN else self._obstacle(facts, self.formats[0])
        if not known and self.place(facts) is not True:
            known = f"{self.title} is not known to have a place for adapters of its model, by whatever names"
        if facts.dialect == UNKNOWN or known:
            return Finding(
                self.name, "rejects", sentence, known or (facts.unread and f"{UNABLE}{facts.unread}")
            )
        words = [
            f"loramerge convert --to {self.formats[0]}",
            facts.options,
            "--extras drop" * bool(facts.others),
        ]
        command = " ".join(filter(None, [*words, facts.quoted, self._beside(facts)]))
        return Finding(self.name, "rejects", sentence, self._cost(facts, foreign=True), command)

    def _obstacle(self, facts: Facts, name: str) -> str:
        """Why it cannot be written in a format; "" if it can."""
        why = facts.unread or facts.unfit(name)
        return why and f"{UNABLE}{why}"

    def _doubtful(self, facts: Facts) -> Finding:
        """Its files do not say what is meant, and no rule tells what becomes of it."""
        sentence = f"{self.title} cannot load it as it is meant, for its files do not say how: {facts.unread}"
        return Finding(self.name, "scales", sentence, "complete its settings, as they were in training")

    def _idle(self, facts: Facts) -> Finding:
        """Its files hold no update at all."""
        what = f"only {printable(next(iter(facts.tensors)), 80)}" if facts.tensors else "no tensors"
        some = f"{what} and others" if len(facts.tensors) > 1 else what
        sentence = f"{self.title} finds nothing to load: it holds no low-rank pair, {some}."
        return Finding(self.name, "rejects", sentence, "name the file or folder that holds the adapter")

    def _bare(self, facts: Facts) -> Iterator[Finding]:
        if self.folder and not facts.folder:
            yield self.rejecting("it loads a folder with an adapter_config.json, and this is one file")
        if facts.sharded and self.shards is False:
            yield self.rejecting("it reads one file of weights, and these are shards")

    def _lacking(self, facts: Facts) -> Iterator[Finding]:
        for setting in self.needs if facts.folder else ():
            if setting not in facts.config:
                mend = "" if setting == "target_modules" else "add it, as it was in training"
                yield self.rejecting(f"adapter_config.json does not give {setting}", mend)

    def _wrapped(self, facts: Facts) -> Iterator[Finding]:
        """Names that are in no model: nothing is found under them, and nobody says so."""
        own = plainly(facts.tensors, facts.folder)
        odd = [key for key in facts.tensors if own[key] != key]
        if odd:
            share = "all" if len(odd) == len(facts.tensors) else f"{len(odd)} of {len(facts.tensors)}"
            names = printable(", ".join(wrapped(facts.tensors, facts.folder)))
            yield self.ignoring(
                f"{share} tensors, whose keys hold what training wraps around modules ({names})"
            )

    def _special(self, facts: Facts) -> Iterator[Finding]:
        for setting in facts.bent:
            value = printable(facts.said(setting), 40)
            mend = UNMENDED.get(setting, "")
            if setting in self.rejects:
                yield self.rejecting(f"{setting} is {value}", mend)
            elif setting not in self.heeds and (setting != "bias" or facts.biased):
                yield self.ignoring(f"{setting} ({value}), and with it {SPECIAL[setting]}", mend)

    def _wrong_scale(self, facts: Facts) -> Iterator[Finding]:
        known = [m for m in facts.modules if m.scale and math.isfinite(m.scale)]
        factors = {m.name: self.strength(facts, m) / m.scale for m in known if m.scale}
        yield from self.scaling(self._unheeded(facts), factors)

    def _unheeded(self, facts: Facts) -> str:
        """Which of the settings that decide the scale it does not read."""
        if not self.folder:
            return f"reads no {'adapter_config.json' if facts.folder else 'lora_adapter_metadata'}"
        said = [setting for setting in SCALING if setting not in self.reads and facts.said(setting)]
        return f"ignores {' and '.join(said)}" if said else "scales otherwise"

    def _too_wide(self, facts: Facts, limit: int | None) -> Iterator[Finding]:
        patterns = facts.said("rank_pattern")
        listed = [r for r in patterns.values() if isinstance(r, int)] if isinstance(patterns, dict) else []
        own = [module.rank for module in facts.modules] or facts.ranks.values()  # rows of all experts
        widest = max([*own, *listed], default=0)
        if limit is None or widest <= limit:
            return
        whose = f"its default {self.rank_option}" if limit == self.max_rank else "the limit given"
        enough = next((n for n in self.rank_choices if n >= widest), None)
        able = bool(self.rank_option) and not (self.rank_choices and enough is None)
        start = f"start it with {self.rank_option} {enough or widest}, or cut it to that rank" if able else ""
        yield self.rejecting(f"rank {widest} is above {limit}, {whose}", start, REWRITE)


def _listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _unknown_type(kind: str) -> str:
    """Why it does not load an adapter of a type that it does not know."""
    if kind == TURNED:
        return "it was written for llama.cpp's converter, with the factors of some layers exchanged"
    return f"it knows no adapter of type {printable(kind, 40)}"
