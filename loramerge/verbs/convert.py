"""An adapter in another format, with the same ΔW in every module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.arguments import checked
from loramerge.arrays import dtypes
from loramerge.checkpoints.base import open_base
from loramerge.checkpoints.loram import scattered
from loramerge.errors import UsageError, VerificationError, calling, printable, say
from loramerge.formats import load, writer
from loramerge.formats.dialects import Dialect, named
from loramerge.formats.dialects.dialect import check_ranks
from loramerge.formats.dialects.grain import check_once
from loramerge.formats.files.destination import a_path
from loramerge.formats.output import Outline, is_bare
from loramerge.formats.peft.alpha import DIFFUSERS, OURS
from loramerge.formats.peft.profiles import Profile, check_profile
from loramerge.formats.records import left_behind
from loramerge.merge.tables import as_html, counted
from loramerge.request.entry import part
from loramerge.request.recipe import Source
from loramerge.request.request import Request
from loramerge.request.signature import spelled
from loramerge.sources.heads import as_pairs
from loramerge.sources.identity import identified
from loramerge.sources.open import open_one
from loramerge.sources.select import check_exclude, select
from loramerge.verbs.diff import Difference, diff


@dataclass(frozen=True, eq=False)
class Conversion:
    """What `convert` returns: the adapter as it was read back, and how far it is from the source.

    Args:
        source, adapter: before and after.   out: where it was written.
        copied: source and result are of one format, and every tensor was copied as it is.
        difference: module by module.
        notes: what the files of the source hold beside, and the result does not; how it has grown.
    """

    source: Adapter
    adapter: Adapter
    out: Path
    copied: bool
    difference: Difference
    notes: tuple[str, ...] = ()

    @property
    def error(self) -> float:
        """‖ΔW − written‖ / ‖ΔW‖ of the worst module."""
        return self.difference.largest

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "out": str(self.out),
            "from": self.source.dialect,
            "to": self.adapter.dialect,
            "copied": self.copied,
            "modules": len(self.adapter),
            "largest_error": self.error,
            "notes": [*self.source.oddities, *self.notes],
        }

    def to_frame(self) -> Any:
        """A `pandas.DataFrame` with a row for each module; pandas must be installed."""
        return self.difference.to_frame()

    def _repr_html_(self) -> str:
        return as_html(self.difference.table(), [str(self), *self.notes])

    def __repr__(self) -> str:
        return f"<Conversion to {printable(self.out)}: {self}>"

    def __str__(self) -> str:
        words = named(self.source.dialect).words, named(self.adapter.dialect).words
        how = "copied tensor by tensor" if self.copied else f"largest error of a module {self.error:.1e}"
        return f"{words[0]} → {words[1]}: {counted(len(self.adapter), 'module')}, {how}"


@spelled("convert")
@checked("to")
@calling(format="to")
def convert(
    source: Source,
    out: str | Path,
    to: str | None = None,
    *,
    pruned: str | Path | None = None,
    **asked: Any,
) -> Conversion:
    """Write an adapter in another format; its ΔW is compared module by module before `out` appears.

    Where source and result are of one format and neither `dtype` nor `profile` is asked for, every tensor is
    copied as it is.

    Args:
        source: as for `load`.
        out: one file if it ends in .safetensors, else a folder, as the format wants it.
        to: ``peft``, ``kohya``, …; by default the format of the source, for whoever changes something else.
        pruned: a folder of the indices that LoRAM pruned the base by: the adapter gets its full size.
        {asked}

    The profile is by default ``compact`` for kohya and diffusers, which load it as it is meant.

    Raises:
        UsageError, SourceError, IncompatibleError, OutputError: a sentence each.
        VerificationError: a module was read back with another ΔW than rounding explains.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = convert("fixtures/a.safetensors", f"{folder}/a", "peft")
    >>> len(done.adapter), done.copied, done.error < 1e-6
    (12, False, True)
    """
    fields, _ = part("convert", None, asked)
    request = Request(**fields)
    if request.extras == "average":
        raise UsageError(f"{say('extras', 'average')} is for several sources: take refuse, first or drop.")
    where = a_path(out, "out")
    opened = as_pairs([_whole(open_one(source, request), pruned, request)], request.heads_as_lora)
    (adapter,) = identified(opened, request)
    dialect = writer.written([adapter], to)
    written = _profile(request.profile, dialect)
    unchanged = not dialect.asked and request.base is None and _changes_nothing(request)
    seen: list[Difference] = []
    if unchanged and _copies(adapter, dialect, where):
        check_once(adapter)
        compare = partial(diff, adapter, progress=request.progress)
        writer.copy(adapter, where, request.overwrite, lambda made: seen.append(compare(made)))
        return Conversion(adapter, load(where), where, True, seen[0], tuple(left_behind(adapter)))
    check_exclude([adapter], request.exclude)
    whole = dialect.adopt(select([adapter], request.only, request.exclude)[0])
    if request.extras == "drop":
        whole = replace(whole, extras={})
    kind = whole.dtype if request.dtype is None else dtypes.parse(request.dtype)

    def check(made: Adapter) -> None:
        again = replace(made, extras=made.extras if whole.extras else {})
        seen.append(diff(whole, again, progress=request.progress))
        check_close(seen[0], kind)

    outline = writer.outlined(whole, dialect, kind, request.extras, written)
    writer.write(whole, outline, where, request.overwrite, check)
    notes = (*left_behind(adapter, rewritten=True), *_grown(whole, outline))
    return Conversion(adapter, load(where), where, False, seen[0], notes)


def _whole(adapter: Adapter, pruned: str | Path | None, request: Request) -> Adapter:
    """The adapter in the sizes of its base, if it was trained on a pruned one."""
    if pruned is None:
        return adapter
    if request.base is None:
        raise UsageError(
            f"{say('pruned')} needs the sizes of the whole model: name it by {say('base', 'BASE')}."
        )
    return scattered(adapter, Path(pruned), open_base(request.base), request.allow_pickle)


def _changes_nothing(request: Request) -> bool:
    asked = (request.dtype, request.profile, request.only, request.exclude, request.heads_as_lora)
    return all(each is None for each in asked)


def _profile(asked: str | None, dialect: Dialect) -> Profile:
    """The profile asked for, else the one in which this dialect loses neither room nor strength."""
    # A source with one module of rank 320 among rank 4 would grow eightyfold. `combine` stays portable, which
    # every version of diffusers loads.
    chosen = check_profile(asked or ("compact" if dialect.name == "diffusers" else "portable"))
    check_ranks(dialect, chosen)
    return chosen


def _grown(whole: Adapter, outline: Outline) -> Iterator[str]:
    """A note where one rank for all modules takes at least twice the units of the source."""
    before, after = sum(slot.rank for slot in whole.slots.values()), sum(outline.widths().values())
    if after < 2 * before:
        return
    said = f"every module is padded with zeros to rank {outline.rank}, {after} units instead of {before}"
    yield said + ("" if outline.dialect.one_rank else f": {say('profile', 'compact')} keeps each at its own")


def check_close(found: Difference, kind: str) -> None:
    """Raises VerificationError: a module is further off than rounding to its type explains."""
    worst = found.worst(1)[0]
    if not worst.error <= max(4 * dtypes.epsilon(kind), 1e-6):
        raise VerificationError(
            f"{printable(worst.name)} would be off by {worst.error:.1e} of its norm in {dtypes.word(kind)}, "
            f"more than rounding explains: its values are too small for the type. Use "
            f"{say('dtype', 'float32')}."
        )


def _copies(adapter: Adapter, dialect: Dialect, out: Path) -> bool:
    """Whether the files can be copied: nothing that is known of them lies outside of them."""
    files = adapter.provenance.files
    if adapter.dialect != dialect.name or not files or adapter.provenance.alpha is not None:
        return False
    if adapter.renamed:
        return False
    if [path.suffix for path in files].count(".safetensors") != 1:  # a pickle, or shards
        return False
    if is_bare(out) != adapter.bare:
        return not dialect.sidecar  # else the config beside would be lost, or is missing
    return dialect.name != "peft" or not adapter.bare or bool({OURS, DIFFUSERS} & adapter.metadata.keys())
