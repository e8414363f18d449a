"""What an adapter is, told from its files: modules, ranks, scales, spectra, and what looks odd."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.arguments import checked
from loramerge.arrays import dtypes
from loramerge.charts.facts import as_frame
from loramerge.consumers import meant
from loramerge.consumers.check import facts_of
from loramerge.consumers.finding import loads
from loramerge.errors import ChangedError, IncompatibleError, LoramergeError, printable
from loramerge.formats import Alpha
from loramerge.formats.dialects import named
from loramerge.formats.dialects.together import described
from loramerge.merge.tables import as_html, counted, fitted, wrapped
from loramerge.request.progress import Tell
from loramerge.request.request import Request
from loramerge.sources.blocks import norms
from loramerge.sources.load import load
from loramerge.sources.modules import ModuleFacts, modules
from loramerge.verbs.contents import Contents, contents


@dataclass(frozen=True, eq=False)
class Inspection:
    """What `inspect` returns; printing it shows the modules grouped by their last name."""

    adapter: Adapter
    modules: tuple[ModuleFacts, ...]

    @property
    def norm(self) -> float | None:
        """‖ΔW‖_F over all modules."""
        norms = [module.norm for module in self.modules if module.norm is not None]
        return None if len(norms) < len(self.modules) else float(np.sqrt(sum(norm**2 for norm in norms)))

    @property
    def oddities(self) -> tuple[str, ...]:
        """Sentences about what a user of this adapter should know."""
        zero = [m.name for m in self.modules if m.norm == 0.0]
        found = list(self.adapter.oddities)
        if zero:
            found.append(f"{len(zero)} of {len(self.modules)} modules are zero, such as {printable(zero[0])}")
        if self.adapter.extras:
            some = ", ".join(printable(key, 60) for key in sorted(self.adapter.extras)[:3])
            many = len(self.adapter.extras)
            found.append(f"{many} tensor{'s are' if many > 1 else ' is'} no low-rank pair: {some}")
        return tuple(found)

    @property
    def peeked(self) -> bool:
        """Whether only the header was read, of a file that is still on the Hub."""
        return self.adapter.provenance.peeked

    @cached_property
    def groups(self) -> Mapping[str, float]:
        """Block -> norm of its factors, √(Σ ‖A‖² + ‖B‖²), as GS-LoRA has it. Reads every factor."""
        return norms(self.adapter)

    @cached_property
    def loads(self) -> dict[str, bool]:
        """Consumer -> whether it loads the adapter as it is meant, if it can be told; `check` says why.

        Nothing of a bare file in PEFT's names, which they load once it is in a folder, nor of what is still
        on the Hub or no adapter by itself, such as a checkpoint among others.
        """
        if self.peeked:
            return {}
        try:
            facts = facts_of(self.adapter)
            self.adapter.provenance.confirm()  # both are of one state of its files
        except ChangedError:
            raise
        except LoramergeError:
            return {}
        if facts.dialect == "peft" and not facts.folder:
            return {}
        told = {consumer.name: loads(consumer.findings(facts)) for consumer in meant(facts)}
        return {name: fine for name, fine in told.items() if fine is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.adapter.name,
            "format": self.kind,
            "base_model": self.adapter.base.name,
            **({"model": described(self.adapter)} if described(self.adapter) else {}),
            **({"hub": self.adapter.provenance.hub} if self.adapter.provenance.hub else {}),
            **({"revision": self.adapter.provenance.revision} if self.adapter.provenance.hub else {}),
            "dtype": dtypes.word(self.adapter.dtype),
            "norm": self.norm,
            **({"scales": "as the metadata states"} if self.adapter.provenance.stated else {}),
            "modules": [module.to_dict() for module in self.modules],
            "extras": sorted(self.adapter.extras),
            "loads": self.loads,
            "oddities": list(self.oddities),
        }

    @property
    def kind(self) -> str:
        """The file format, in words."""
        if self.adapter.dialect == "peft":
            return "bare PEFT file" if self.adapter.bare else "PEFT folder"
        return named(self.adapter.dialect).words

    def table(self) -> list[list[str]]:
        """Rows by the last part of the module name, the header first."""
        groups: dict[tuple[str, tuple[int, int]], list[ModuleFacts]] = defaultdict(list)
        for module in self.modules:
            groups[_last(module.name), module.shape].append(module)
        scale = "stated scale" if self.adapter.provenance.stated else "scale"
        head = ["module", "count", "out×in", "rank", scale]
        spectra = [] if self.peeked else ["norm", "eff. rank", "energy in 1, 2, 4, 8 units"]
        return [[*head, *spectra], *(_row(name, members) for (name, _), members in groups.items())]

    def __str__(self) -> str:
        loads = filter(None, [_told(self.loads)])
        return "\n".join([*wrapped([self._head()]), *fitted(self.table()), *wrapped([*loads, *self._odd()])])

    def _repr_html_(self) -> str:
        return as_html(self.table(), [self._head(), *filter(None, [_told(self.loads)]), *self._odd()])

    def to_frame(self) -> Any:
        """A `pandas.DataFrame` with a row for each module; pandas must be installed."""
        return as_frame([module.to_dict() for module in self.modules])

    def __repr__(self) -> str:
        return f"<Inspection of {self._head()}>"

    def _odd(self) -> list[str]:
        return [f"odd: {text}" for text in self.oddities]

    def _head(self) -> str:
        head = (
            f"{printable(self.adapter.name)}: {self.kind}, {counted(len(self.modules), 'module')}, "
            f"{dtypes.word(self.adapter.dtype)}, "
            f"{self._model}"
            f"{'' if self.norm is None else f', ‖ΔW‖ {self.norm:.4g}'}"
        )
        if self.adapter.provenance.hub:
            head += f", commit {printable((self.adapter.provenance.revision or '')[:8])}"
        return head

    @property
    def _model(self) -> str:
        """What it is for, in words: its base model, or the family of an image model."""
        of, base = described(self.adapter), self.adapter.base.name
        named = f"base model {printable(base or 'not named')}"
        return f"for {of}" if of and not base else f"for {of}, {named}" if of else named


def _told(loads: dict[str, bool]) -> str:
    """Who loads it as it is meant.

    >>> _told({"peft": True, "vllm": False})
    'loads as it is meant in peft; not in vllm (loramerge check says why)'
    """
    well, badly = ([name for name, fine in loads.items() if fine is wanted] for wanted in (True, False))
    said = [f"loads as it is meant in {', '.join(well)}"] if well else []
    not_in = "not in" if well else "does not load as it is meant in"
    said += [f"{not_in} {', '.join(badly)} (loramerge check says why)"] if badly else []
    return "; ".join(said)


@checked("allow_pickle", "download", "base")
def inspect(
    source: str | Path | Adapter,
    alpha: Alpha | None = None,
    *,
    allow_pickle: bool = False,
    download: bool = False,
    base: str | Path | None = None,
    progress: Tell | bool | None = None,
) -> Inspection | Contents:
    """Read an adapter and measure every module. Factors are read once, batch by batch.

    Of files that cannot be merged, such as DoRA or OFT, it tells what is in them, and the refusal.

    On the Hub only the header is read, so the file need not be downloaded. There are no spectra and no norms
    then. Where alphas lie all over the file, a few are read. If these agree with the metadata, the others are
    taken from there, and `oddities` says so.

    Args:
        source: as for `load`.   alpha: for a bare file that does not say its own.
        allow_pickle, base: as for `load`.   download: download it from the Hub, and measure it.
        progress: as for `combine`; the stage is `measuring`.

    Raises:
        SourceError: as `load`; also for NaN in a factor.
        IncompatibleError: a pickle, and these are not allowed.

    >>> facts = inspect("fixtures/a.safetensors")
    >>> len(facts.modules), facts.modules[0].rank, facts.modules[0].scale, facts.oddities
    (12, 8, 2.0, ())
    """
    tell = Request(progress=progress).tell
    try:
        adapter = load(
            source, alpha, optional=True, allow_pickle=allow_pickle, peeking=not download, base=base
        )
    except IncompatibleError as error:
        if isinstance(source, Adapter):
            raise
        return contents(source, error, allow_pickle)
    return measured(adapter, tell)


def measured(adapter: Adapter, tell: Tell | None = None) -> Inspection:
    """The same of what is loaded."""
    return Inspection(adapter, modules(adapter, tell))


def _last(name: str) -> str:
    """The last part of a module's name, with the one before a number; experts of one parameter are one kind.

    >>> _last("attn1.to_out.0"), _last("mlp.experts.down_proj[3]")
    ('to_out.0', 'down_proj')
    """
    before, _, last = name.partition("[")[0].rpartition(".")
    return f"{before.rpartition('.')[2]}.{last}" if last.isdigit() and before else last


def _row(name: str, members: list[ModuleFacts]) -> list[str]:
    shape = members[0].shape
    return [
        printable(name, 40),
        str(len(members)),
        f"{shape[0]}×{shape[1]}",
        _span([m.rank for m in members]),
        _span([m.scale for m in members]),
        *_spectra(members),
    ]


def _spectra(members: list[ModuleFacts]) -> list[str]:
    """The columns that need the factors."""
    known = [m for m in members if m.sigma is not None]
    if not known:
        return []
    return [_span([m.norm for m in known]), _span([m.effective_rank for m in known]), _energies(known)]


def _span(values: list[Any]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g}…{high:.3g}"


def _energies(members: list[ModuleFacts]) -> str:
    """Share of the energy in the leading units, over all members."""
    squares = [m.sigma**2 for m in members if m.sigma is not None]
    total = sum(float(each.sum()) for each in squares)
    if total == 0:
        return "–"
    heads = [sum(float(each[:k].sum()) for each in squares) / total for k in (1, 2, 4, 8)]
    return ", ".join(f"{100 * head:.0f}" for head in heads) + " %"
