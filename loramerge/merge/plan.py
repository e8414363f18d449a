"""A merge that is settled in everything but the numbers, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loramerge.algorithms import Method, name_of
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array
from loramerge.errors import UsageError, printable, say
from loramerge.formats import writer
from loramerge.formats.dialects import PEFT
from loramerge.formats.dialects.dialect import check_place
from loramerge.formats.extras import limits
from loramerge.formats.extras import settle as settle_extras
from loramerge.formats.files.destination import check_apart
from loramerge.formats.output import Outline, is_bare
from loramerge.merge.tables import as_html, headed
from loramerge.request.budgets import Budget
from loramerge.request.default import Default
from loramerge.request.effort import Effort
from loramerge.request.kinds import size
from loramerge.request.recipe import Recipe
from loramerge.request.request import TFIDF, Request
from loramerge.request.rules import Scale
from loramerge.request.schedule import Schedule
from loramerge.sources.choice import told
from loramerge.sources.sources import Sources, work_weights
from loramerge.sources.units import Units

if TYPE_CHECKING:
    from loramerge.formats.masks import MaskPlan
    from loramerge.merge.tailor import Tailor

SERVER_RANK = 16  # vLLM's default max_lora_rank


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """A merge of these sources: all decisions are made, only the numbers are missing.

    Args:
        request: what was asked.   schedule: weights and ranks as given, module by module.
        weights: (T,) in the middle layer, as the method uses them; the report shows them.
        work: the sources as they are merged, crowded modules folded (then one more than `sources`).
        method: with every open option settled.   outline: what the output will look like.
        budget: what it may cost.   tailor: the consumer that it is made for.
        strengths: what ``cosine`` found, by module.   sized: someone chose its size.
        default: how the method was come by, if nobody named one.
        asked: the recipe as its user gave it, collections expanded; None if nobody knows it.
    """

    request: Request
    sources: Sources
    schedule: Schedule
    weights: Array
    work: Sources
    method: Method
    outline: Outline
    notes: tuple[str, ...]
    budget: Budget | None = None
    strengths: Mapping[str, float] = field(default_factory=dict)
    tailor: Tailor | None = None
    sized: bool = False
    default: Default | None = None
    asked: Recipe | None = None

    def __repr__(self) -> str:
        return f"<Plan for {self.what}>"

    def _repr_html_(self) -> str:
        names = (adapter.name for adapter in self.sources.adapters)
        rows = [[n, f"{w:g}"] for n, w in zip(names, map(float, self.weights), strict=False)]
        return as_html(headed(["source", "weight"], rows), [self.what, *self.notes])

    @property
    def what(self) -> str:
        """The merge in a few words."""
        return f"{self.sources.what} by {self.named}: rank {self.outline.largest}"

    @property
    def named(self) -> str:
        """The method by its name, and whether it is the default."""
        return name_of(self.method) if self.default is None else str(self.default)

    @property
    def scale(self) -> Scale:
        """The policy of strength."""
        return self.request.scale

    @property
    def settled(self) -> Request:
        """The request with all decisions that change bytes, for the record; it names no folders."""
        asked, outline = self.request, self.outline
        compared = self.method.query is not None
        return replace(
            asked,
            dtype=dtypes.word(outline.dtype),
            profile=outline.profile,
            format=self.sources.dialect.asked or self.sources.dialect.name,
            embedding=Path(asked.embedding or TFIDF).name if compared else None,
        )

    @property
    def effort(self) -> Effort:
        """How much of the machine it may use: as many workers as can each hold what the method needs."""
        effort = self.request.effort.on_gpu() if self.method.batched else self.request.effort
        return effort.holding(self.held)

    @property
    def held(self) -> int:
        """Bytes that a worker takes for the most demanding module."""
        return self.work.held(self.method, self.outline)

    def asking(self, **fields: Any) -> Plan:
        """The same plan with other fields of output or effort, which change no decision."""
        return replace(self, request=replace(self.request, **fields))

    def by(self, default: Default | None) -> Plan:
        """The same plan, of a method that nobody named."""
        return self if default is None else replace(self, default=default)

    def way(self, units: Units) -> tuple[Method, Array]:
        """The method and the weights of a batch, one for each of `work`."""
        method, weights = self.schedule.way(self.method, units.targets[0])
        return method, work_weights(self.work, weights)

    def again(self, method: Method, schedule: Schedule) -> Plan:
        """The same merge with other ranks."""
        units = {
            t: schedule.way(method, t)[0].width(ranks, self.work.shape(t))
            for t, ranks in self.work.signatures.items()
        }
        outline = self.sources.outline(units, self.outline.dtype, self.outline.profile)
        policy = self.request.extras
        kept = settle_extras(self.sources.adapters, self.weights, policy, outline.shapes)
        if not self.request.keep_form:
            writer.check_beside(self.sources.adapters, self.sources.dialect, list(kept.tensors))
        config = {**outline.config, **kept.config}
        outline = replace(
            outline, config=config, extras=kept.tensors, apart=kept.apart, masks=self._masks(method, outline)
        )
        names = [adapter.name for adapter in self.sources.whole]
        sizes = (*schedule.notes(names, list(outline.shapes)), *([] if self.tailor else _size_notes(outline)))
        if self.request.keep_form:  # no plain LoRA is written
            told_of = tuple(note for note in kept.notes if note not in limits(kept.config))
            sizes, kept = (), replace(kept, notes=told_of)
        notes = (
            *self.sources.notes,
            *told(self.sources.left_out),
            *kept.notes,
            *sizes,
            *method.notes,
            *_bias_notes(self.sources, method),
            *self.on_host(method),
        )
        return replace(self, schedule=schedule, method=method, outline=outline, notes=notes)

    def _masks(self, method: Method, outline: Outline) -> MaskPlan | None:
        """The masks that come with it, if the method makes any."""
        if not method.masks:
            return None
        if self.sources.dialect.weights is None:
            raise UsageError(
                f"{name_of(method)} makes masks of tasks, and the format {self.sources.dialect.name} has no "
                f"place for them: give {say('format', 'peft')} or {say('format', 'diffusers')}."
            )
        from loramerge.formats.masks import planned  # few merges have masks

        names = [adapter.name for adapter in self.sources.adapters]
        weighted = [
            any(weights) for weights in zip(*(line.first for line in self.schedule.lines), strict=True)
        ]
        return planned(names, self.sources.signatures, weighted, outline.shapes)

    def default_out(self, name: str) -> Path:
        """Where it is written if nobody says: a file from files, unless the consumer loads folders."""
        bare = (
            self.sources.bare
            and self.outline.masks is None
            and not (self.tailor and self.tailor.consumer.folder)
        )
        return Path(f"{name}.safetensors" if bare else name)

    def check_apart(self, out: Path) -> None:
        """Raises OutputError: writing there would destroy what is read, or hide it among the results."""
        check_apart(out, self.sources.whole, [*self.request.places, *self.sources.read])

    def check_destination(self, out: Path) -> None:
        """Whether it can be written there.

        Raises:
            UsageError: format or consumer wants a folder, and this is a file, or the reverse.
            OutputError: it is a source, holds one, or lies in the folder of one.
        """
        self.check_apart(out)
        check_place(self.sources.dialect, is_bare(out), out)
        if self.tailor:
            self.tailor.check_destination(out, is_bare(out))

    def on_host(self, method: Method) -> list[str]:
        """A note for a method that cannot use a GPU."""
        if self.request.device in ("cpu", "auto") or method.batched:
            return []
        where = self.request.device
        return [f"{name_of(method)} works on the host, entry by entry, and makes no use of {where}"]

    @property
    def above_memory(self) -> tuple[str, ...]:
        """What is to be said where a module or tensor takes more than there may be; the merge is the same."""
        held, memory = self.held, self.request.effort.memory
        said, told = say("memory", size(memory).replace(" ", "")), []
        if held > memory:
            told.append(
                f"{name_of(self.method)} takes about {size(held)} for its largest module, which is more "
                f"than {said}: modules are merged one at a time"
            )
        key, held = max(self.outline.held_beside().items(), key=itemgetter(1), default=("", 0))
        if held > memory:
            told.append(
                f"{printable(key)} takes about {size(held)} while it is written, which is more than {said}"
            )
        return tuple(told)

    @property
    def folds(self) -> bool:
        """Whether the work holds folded sums beside the sources."""
        return len(self.work.adapters) > len(self.sources.adapters)

    def batches(self, effort: Effort) -> list[Units]:
        """The work in pieces that are merged alike and that one worker can hold."""
        return self.work.batches(effort, self.schedule, self.method, self.outline)


def _bias_notes(sources: Sources, method: Method) -> list[str]:
    """What a method that is no sum leaves open: how strong trained biases of ``lora_B`` would have to be."""
    if method.traits.sums or not any(adapter.biases for adapter in sources.adapters):
        return []
    return [
        f"biases of lora_B are summed by their weights, and {name_of(method)} makes no such sum of ΔW: they "
        f"may be too strong or too weak beside it, as they are not with {say('method', 'linear')}"
    ]


def _size_notes(outline: Outline) -> list[str]:
    notes = []
    if outline.dialect.name == PEFT.name and outline.largest > SERVER_RANK:
        notes.append(
            f"rank {outline.largest} is above {SERVER_RANK}, vLLM's default --max-lora-rank; "
            f"with rank {SERVER_RANK}, which most methods take, or by loramerge resize "
            f"it stays within it"
        )
    if outline.ranks and not outline.dialect.keeps_alpha:
        notes.append(
            "modules have ranks of their own, which PEFT, vLLM and diffusers read; llama.cpp would scale "
            "them wrongly, and SGLang refuse them: the profile portable is for these"
        )
    return notes
