"""What the Hub asks of a card: its front matter, in YAML, made of facts.

By https://huggingface.co/docs/hub/model-cards: one base_model and its relation `adapter`, since a list of
them would mean a merged model. `base_model:adapter:…` is the tag by which the Hub lists adapters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loramerge.hub.escape import quoted

BASE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?")
SHORT = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")  # how the Hub writes the licences and tasks that it knows
PIPELINES = {
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}


@dataclass(frozen=True)
class CardSource:
    """A source as the card shows it: `hub` and `commit` where it came from the Hub, else its SHA-256."""

    name: str
    weight: str
    hub: str | None = None
    commit: str | None = None
    sha256: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Facts:
    """What a card tells.

    Args:
        repo: where it goes.   place: the name of the one file, if it is a bare one.
        library: what loads it: peft, diffusers or mlx; None if it must be converted for these.
        loaders: the programs that load it as it is meant.   words: what its format is called.
        base: the base model.   base_is_here: its name is that of a folder on a disk, not of a repository.
        base_licence: None if it is not known.   task: PEFT's task_type.   pipeline: the Hub's word for it.
        modules, rank, dtype: of the adapter.   sources: none, if it was not merged by loramerge.
        method, options, settings: as recorded.   report: its figures, if they are at hand.
        default: nobody named the method.
        versions: of what merged it.   masks: the tasks that its masks bring back.
    """

    repo: str
    modules: int
    rank: int
    dtype: str
    base: str | None = None
    base_is_here: bool = False
    base_licence: str | None = None
    task: str | None = None
    pipeline: str | None = None
    place: str | None = None
    library: str | None = "peft"
    loaders: tuple[str, ...] = ("peft", "transformers", "vllm")
    words: str = "a LoRA"
    sources: tuple[CardSource, ...] = ()
    method: str | None = None
    default: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    masks: tuple[str, ...] = ()

    @property
    def tag(self) -> str | None:
        """The library that the Hub is told; none loads a bare file of PEFT."""
        return None if self.library == "peft" and self.place else self.library

    @property
    def hub_base(self) -> str | None:
        """The base, if it is the name of a repository rather than a place on somebody's disk."""
        return self.base if self.base and not self.base_is_here and BASE.fullmatch(self.base) else None


def agreed(facts: Facts) -> str | None:
    """The licence of all sources and of the base, if that is known; None where they differ or do not say.

    No rule says which licence a merge of several has, so none is guessed.

    >>> one = CardSource("a", "1", licence="mit")
    >>> agreed(Facts("o/n", 1, 1, "F32", sources=(one, one)))
    'mit'
    """
    found = {source.licence for source in facts.sources}
    found |= {facts.base_licence} if facts.base_licence else set()
    return next(iter(found)) if len(found) == 1 and facts.sources and None not in found else None


def matter(facts: Facts) -> str:
    lines = []
    if facts.hub_base:
        lines += [f"base_model: {quoted(facts.hub_base)}", "base_model_relation: adapter"]
    lines += [f"library_name: {facts.tag}"] if facts.tag else []
    pipeline = PIPELINES.get(facts.task or "", facts.pipeline)
    if pipeline and SHORT.fullmatch(pipeline):
        lines.append(f"pipeline_tag: {pipeline}")
    lines += _licence_lines(facts)
    tags = [
        "lora",
        *([facts.tag] if facts.tag else []),
        *(["merge"] if facts.sources else []),
        "loramerge",
    ]
    tags += [f"base_model:adapter:{facts.hub_base}"] if facts.hub_base else []
    return "\n".join(["---", *lines, "tags:", *(f"- {quoted(tag)}" for tag in tags), "---"])


def _licence_lines(facts: Facts) -> list[str]:
    if not facts.sources:
        return []
    licence = agreed(facts)
    if licence and SHORT.fullmatch(licence) and licence != "other":
        return [f"license: {licence}"]
    named = re.fullmatch(r"other \((.*)\)", licence or "")
    name = re.sub(r"[^a-z0-9.-]+", "-", named[1].lower()).strip("-") if named else ""
    return ["license: other", f"license_name: {name or 'see-the-list-below'}"]
