"""What is asked of a merge, as one value: every place that states its options derives them from here.

A field says what it means, which values fit, which part of the house reads it, and under which names the
command line, recipes and records know it. `doors` says which verb takes it.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from loramerge.charts.facts import facts_html
from loramerge.request import kinds
from loramerge.request.blocks import Blocks
from loramerge.request.effort import MEMORY, Effort
from loramerge.request.field import Field, ask, fields_of
from loramerge.request.rules import UNBOUNDED, rule, weight
from loramerge.request.share import Share
from loramerge.request.tables import consumers, formats, policies, profiles, spellings

if typing.TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loramerge.request.progress import Tell
    from loramerge.request.rules import Rule, Weight

TFIDF = "tfidf"  # how texts are compared, if nothing is said
DTYPES = ("float32", "bfloat16", "float16", "float64")
SHORT = ("bf16", "fp16", "fp32", "fp64", "BF16", "F16", "F32", "F64")  # as PEFT and safetensors say it
SCALES = ("norm", "fade", "cosine")
GRAINS = (
    "fused", "split", "fused-experts", "split-experts", "fused-projections", "split-projections",
)  # fmt: skip


@dataclass(frozen=True, repr=False, kw_only=True, eq=False)
class Request:
    """Everything that a merge can be asked for beside its sources and its method.

    Raises:
        UsageError: a value does not fit; the sentence begins with the name of the field.

    >>> Request(size="20MB", only="q_proj").size
    '20MB'
    """

    weights: Sequence[Weight] | None = ask(None, "Weight of each source, in order; a negative one "
        "subtracts it. Or a `Ramp` over depth.", "sources", kinds.Many(each=weight, of="numbers or ramps"),
        shown="1 each")  # fmt: skip
    rules: Sequence[Rule] = ask((), "Other weights or ranks for modules by name; see `Rule`.",
        "sources", kinds.Many(each=rule, of="rules such as lm.Rule('mlp', rank=4)"), key="modules",
        setting="modules", always=True)  # fmt: skip
    only: str | None = ask(None, "Take only modules whose name matches.", "sources",
        kinds.Text(metavar="REGEX"), always=True)  # fmt: skip
    exclude: str | None = ask(None, "Leave out modules whose name matches.", "sources",
        kinds.Text(metavar="REGEX"), always=True)  # fmt: skip
    blocks: str | Mapping[str, str] | Sequence[float] | None = ask(None, "Strengths of the blocks of image "
        "models: 1,0,0.5,…, one for each block, as in `lbw=`; or by name: `IN04=0.5`, or `double 3-7` for "
        "these blocks alone.", "sources", Blocks(metavar="[SOURCE=]BLOCKS"))  # fmt: skip
    row: str | None = ask(None, "If a source is a bundle of `route` with rows or tasks: the one whose "
        "weights are used.", "sources", kinds.Text(metavar="NAME"))  # fmt: skip
    alpha: float | str | Mapping[str, float | str] | None = ask(None, "The training alpha of files that "
        "do not state it: a number, `rslora:A` if trained with rsLoRA, or `rank` for scale 1.", "sources",
        kinds.Alphas(metavar="[SOURCE=]A"))  # fmt: skip
    allow_base_mismatch: bool = ask(False, "Accept sources that name different base models.", "sources",
        kinds.Flag(), always=True)  # fmt: skip
    allow_disjoint: bool = ask(False, "Accept sources that share no module, although nothing shows that "
        "they are for one model.", "sources", kinds.Flag())  # fmt: skip
    rename: Mapping[str, str] | str | Path | None = ask(None, "Change how names of modules "
        "begin: OLD=NEW, or a file of such pairs. A `*` stands for any one part of a name.", "sources",
        kinds.Renames(metavar="OLD=NEW|FILE"))  # fmt: skip
    grain: str | None = ask(None, "Have projections (q, k, v; gate, up) and experts fused into "
        "one module, or split; models differ in this.", "sources", kinds.Choice(words=lambda: GRAINS),
        shown="as the sources, or as the model has them where these differ", always=True)  # fmt: skip
    extras: str = ask("refuse", "What becomes of tensors that are not low-rank pairs (heads, biases, "
        "token rows): keep those of the first source that has them, take their weighted mean, or drop them.",
        "sources", kinds.Choice(words=policies), always=True)  # fmt: skip
    # names a model of its own: a flag beside `base` could not take the model as its value any more
    heads_as_lora: str | Path | None = ask(None, "Make low-rank pairs of heads, embeddings and token rows "
        "that were trained as a whole, by comparing them with the weights of this base model.", "sources",
        kinds.Text(metavar="BASE", path=True))  # fmt: skip
    renormalise: bool = ask(False, "Where a source lacks a module, divide by the weights of the others, "
        "instead of counting it as zero.", "sources", kinds.Flag(), always=True)  # fmt: skip
    initial: Mapping[str, str | Path] | None = ask(None, "The adapter that the training of a source "
        "started from. With it PiSSA, OLoRA, CorDA and LoRA-GA become plain LoRA, exactly.", "sources",
        kinds.Pairs(metavar="SOURCE=PATH"))  # fmt: skip
    base: str | Path | None = ask(None, "The model that the sources were trained on, for forms that need its "
        "layer sizes or weights, such as VeRA and DoRA: a path, or a name on the Hub.", "sources",
        kinds.Text(metavar="BASE", path=True))  # fmt: skip
    prompt_gate: str | Path | None = ask(None, "For WavLLM: how much each output counts under a fixed "
        "prompt. A .safetensors or .npz with a vector for each module, or one for all.", "sources",
        kinds.Text(metavar="FILE", path=True))  # fmt: skip
    names: Mapping[str, str] | None = ask(None, "For a file whose names are not known: how the keys of its "
        "factors end, as down=END and up=END. Other tensors are left out.", "sources",
        kinds.Pairs(metavar="SIDE=END"))  # fmt: skip
    project_out: str | Path | None = ask(None, "An adapter that the merge must not disturb: what lies in the "
        "span of its outputs is taken out of every source, module by module.", "sources",
        kinds.Text(metavar="ADAPTER", path=True))  # fmt: skip
    drop_below: float | None = ask(None, "Leave out the blocks of a source whose factors together have a "
        "norm of zero, or below this; `inspect` with `groups` shows the norms.", "sources",
        kinds.Number())  # fmt: skip
    allow_pickle: bool = ask(False, "Also read .bin and .pt files, without running what they contain.",
        "sources", kinds.Flag())  # fmt: skip
    format: str | None = ask(None, "How the output is written: a format, the program that will read it, or a "
        "spelling from docs/formats.md.", "output", kinds.Choice(words=formats, also=spellings),
        shown="as the sources, if these are of one format", always=True)  # fmt: skip
    descriptions: Mapping[str, str] | str | Path | None = ask(None, "What each source is good at, for "
        "method sg: {source: text}, or a JSON file of that. Without it, descriptions.json beside the source "
        "says so, or its model card.", "sources", kinds.Pairs(metavar="FILE", file=True))  # fmt: skip
    embedding: str | Path | None = ask(None, "How descriptions are compared: tfidf, by the words they "
        "share; a .npz, .safetensors or .json of vectors by name; or a sentence-transformers model.",
        "sources", kinds.Text(metavar="HOW", path=True), shown=TFIDF)  # fmt: skip
    keep_form: bool = ask(False, "Keep the form of the sources, such as VeRA or LoRA-XS, where their "
        "updates are linear in the tensors that differ.", "output", kinds.Flag())  # fmt: skip
    dtype: str | None = ask(None, "Number type of the output.", "output",
        kinds.Choice(words=lambda: DTYPES, also=lambda: SHORT), shown="the widest of the sources",
        always=True)  # fmt: skip
    profile: str | None = ask(None, "How ranks are written. portable: all modules at one rank, for every "
        "program. compact: each at its own, for PEFT, vLLM and diffusers.", "output",
        kinds.Choice(words=profiles), shown="portable", always=True)  # fmt: skip
    total_rank: int | None = ask(None, "Instead of a rank: the ranks of all modules together, shared so "
        "that the least energy is lost.", "size", kinds.Whole())  # fmt: skip
    size: float | str | None = ask(None, "Instead of a rank: the size of the file of weights, such as "
        "20MB. Ranks are shared so that it is never larger.", "size", kinds.Size(metavar="SIZE"))  # fmt: skip
    energy_per_module: float | str | None = ask(None, "Instead of one rank: every module keeps this share of "
        "its ‖ΔW‖², or what kohya's `sv_fro=0.97`, `sv_ratio=20` or `sv_cumulative=0.9` keep. A rank given "
        "beside it is the limit.", "size", Share(metavar="SHARE"))  # fmt: skip
    consumer: str | None = ask(None, "The program that will load the output. What it cannot load is not "
        "written but refused. See `loramerge check`.", "output", kinds.Choice(words=consumers), option="for",
        key="for")  # fmt: skip
    max_rank: int | None = ask(None, "The largest rank that this program is set to load.", "output",
        kinds.Whole(), shown="the program's own; 16 for vLLM")  # fmt: skip
    allow_unknown: bool = ask(False, "Write the output even if nobody can tell whether this program loads "
        "it.", "output", kinds.Flag())  # fmt: skip
    scale: float | str = ask(1.0, "Strength of the merge: a number; `norm`: every module is as strong as "
        "its sources on average; `fade`: that times T^−0.3 for T sources; `cosine`: modules are weighed so "
        "that the source that fits worst fits as well as possible, and the whole is no stronger than the "
        "sources on average.", "strength",
        kinds.Strength(metavar="S", policies=SCALES, former=(UNBOUNDED,)), shown="1")  # fmt: skip
    max_error: float | None = ask(None, "Fail (exit 4) if rounding costs a module more than this share of "
        "its norm.", "output", kinds.Number())  # fmt: skip
    max_lost: float | None = ask(None, "Fail (exit 4) if the merge lacks more than this share of the energy "
        "of the weighted sum.", "output", kinds.Number())  # fmt: skip
    min_cosine: float | None = ask(None, "Fail (exit 4) if the cosine of the merge with a source of positive "
        "weight is below this.", "output", kinds.Number(high=1))  # fmt: skip
    out: Path | None = ask(None, "Where to write: NAME.safetensors for one file, another name for a folder.",
        "output", kinds.Place())  # fmt: skip
    bare: bool | None = ask(None, "Whether it will be written as one file, which a `size` must know.",
        "output", kinds.Flag(), shown="as the sources")  # fmt: skip
    overwrite: bool = ask(False, "Replace an existing output.", "output", kinds.Flag())  # fmt: skip
    threads: int | None = ask(None, "How many workers; they do not change the result.", "effort",
        kinds.Whole(), shown="one per core, up to 8")  # fmt: skip
    memory: float | str = ask(float(MEMORY), "Memory for what all workers merge at a time, such as 500MB, "
        "beside some 50 MB of the program. A module that needs more is merged alone, and a note tells so. It "
        "does not change the result.", "effort", kinds.Size(metavar="SIZE"), shown="1GB")  # fmt: skip
    device: str = ask("cpu", "Where to compute: `cpu`; `cuda`, a GPU; `cuda:1`, the second GPU; `auto`, a "
        "GPU if one answers, for modules that are large enough to be faster there.", "effort",
        kinds.Device(metavar="DEVICE"))  # fmt: skip
    allow_work: bool = ask(False, "Do what a record or recipe asks of a method, even if it is more than ten "
        "times the usual work.", "effort", kinds.Flag())  # fmt: skip
    progress: Tell | bool | None = ask(None, "True shows a bar to those who wait. Or a function of (stage, "
        "done, total), called ten times a second in your own thread: `reading`, `merging`, …; if it has a "
        "method `close`, that is called after each stage.", "effort", kinds.Progress(),
        shown="False")  # fmt: skip

    def __post_init__(self) -> None:
        for each in FIELDS.values():
            object.__setattr__(self, each.name, each.fit(getattr(self, each.name)))

    def __repr__(self) -> str:
        return f"Request({', '.join(f'{each.name}={value!r}' for each, value in self.given())})"

    def __eq__(self, other: object) -> bool:  # to generate it for 45 fields slows start-up
        return list(self.given()) == list(other.given()) if isinstance(other, Request) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self.given()))

    def _repr_html_(self) -> str:
        return facts_html({each.name: value for each, value in self.given()} or {"request": "as usual"})

    @cached_property
    def effort(self) -> Effort:
        """How much of the machine it may use."""
        return Effort(self.threads, kinds.in_bytes(self.memory), self.device)

    @property
    def tell(self) -> Tell | None:
        """Who is told how far the merge is."""
        return None if isinstance(self.progress, bool) else self.progress

    def given(self) -> Iterator[tuple[Field, Any]]:
        """The fields that are not as they would be if nobody spoke of them."""
        for each in FIELDS.values():
            value = getattr(self, each.name)
            if value is not each.default and value != each.default:
                yield each, value

    @property
    def places(self) -> list[Path]:
        """The files and folders of this machine that its fields name, whether they are read or not."""
        from pathlib import Path  # importing the package needs none

        named = [
            value
            for each, value in self.given()
            if getattr(each.kind, "path", False) and not _is_table(value)
        ]
        return [path for path in map(Path, named) if os.path.exists(path)]


def _is_table(value: Any) -> bool:
    """Whether texts are given themselves, and no file of them."""
    return isinstance(value, Mapping)


FIELDS: Mapping[str, Field] = fields_of(Request)
PLAIN = Request()
