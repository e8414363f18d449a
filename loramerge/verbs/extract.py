"""An adapter taken out of a whole tuned model: what it adds to its base, as low-rank updates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loramerge.adapters.arguments import checked
from loramerge.checkpoints.adapter import adapter as adapter_of
from loramerge.checkpoints.alike import doubts
from loramerge.checkpoints.difference import Beside, name_of, paired
from loramerge.checkpoints.open import open_checkpoint
from loramerge.checkpoints.write import check_outside
from loramerge.errors import IncompatibleError, LoramergeError, UsageError, VerificationError, printable, say
from loramerge.formats import load, writer
from loramerge.formats.files.atomic import check_output
from loramerge.formats.output import is_bare
from loramerge.formats.peft.beside import told
from loramerge.merge.tables import counted
from loramerge.request.entry import part
from loramerge.request.request import Request
from loramerge.request.signature import spelled
from loramerge.verbs.convert import check_close
from loramerge.verbs.diff import Difference, diff
from loramerge.verbs.extraction import Extraction
from loramerge.verbs.ranks import Draft, Ranks, check_size, chooser


@spelled("extract")
@checked("tuned", "base", "out", "rank", "energy")
def extract(
    tuned: str | Path,
    base: str | Path,
    out: str | Path | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    **asked: Any,
) -> Extraction:
    """The adapter that makes a base model into a tuned one, as nearly as its rank allows.

    Both are read module by module. Modules that are the same, or differ by rounding only, are left out.

    Args:
        tuned, base: folders as transformers or diffusers writes them, single files, or names on the Hub.
        out: as for `combine`; without it the adapter stays in memory.
        rank: units in every module; 32 if no size is asked for.
        energy: as many as keep this share of ‖ΔW‖² in every module.
        {asked}

    Raises:
        UsageError, SourceError, IncompatibleError, OutputError: a sentence each.
        VerificationError: a module was read back with another ΔW than rounding explains, or it is beyond a
            limit that you gave.
    """
    fields, _ = part("extract", None, asked)
    request = Request(**fields)
    where = Path(out) if out is not None else request.out
    check_size(request, rank, energy)
    if request.extras == "average":
        several = say("extras", request.extras)
        raise UsageError(f"{several} is for several sources: take refuse, first or drop.")
    bare = request.bare if where is None else is_bare(where)
    name = Path(str(tuned)).name or str(tuned)
    draft = Draft(paired(open_checkpoint(tuned), open_checkpoint(base)), request, name)
    try:
        return _Extractor(draft, Ranks(draft, rank, energy, bool(bare))).run(where)
    except LoramergeError:
        for model in (draft.pair.tuned, draft.pair.base):
            model.confirm()  # what was found in a mixture of two states says nothing
        raise


@dataclass(frozen=True, eq=False)
class _Extractor:
    """One extraction under way: the adapter that is to be, and how large it is."""

    draft: Draft
    ranks: Ranks

    def run(self, out: Path | None) -> Extraction:
        """Extract, write, read back."""
        draft, request, pair = self.draft, self.draft.request, self.draft.pair
        if out is not None:
            for model in (pair.tuned, pair.base):
                check_outside(model, out)
            check_output(out, request.overwrite, folder=not is_bare(out))
        beside = self._beside()
        modules = self.ranks.modules()
        kept = [each for each in beside if not each.rounded] if request.extras == "first" else []
        whole = adapter_of(pair, modules, kept, draft.name)
        dialect = draft.dialect(whole)
        whole = dialect.adopt(whole)
        names, said = (pair.tuned.name, pair.base.name), tuple(doubts(pair.base))
        found = Extraction(whole, out, tuple(modules), beside, bool(kept), names, pair.alone, said)
        self._check_limits(found)
        if out is None:
            whole.provenance.confirm()
            return found
        writer.write(
            whole,
            writer.outlined(whole, dialect, draft.kind, request.extras, draft.profile),
            out,
            request.overwrite,
            lambda made: self._check_written(diff(whole, made), draft.kind),
        )
        return replace(found, adapter=load(out))

    def _check_limits(self, found: Extraction) -> None:
        """Raises VerificationError: it is beyond a limit that the user gave."""
        most, least = self.draft.request.max_lost, self.draft.request.min_cosine
        if most is not None and found.energy_lost > most:
            raise VerificationError(
                f"The adapter misses {found.energy_lost:.3g} of the energy of the difference, more than "
                f"{say('max_lost', most)}: give it a larger {say('rank').rstrip('=')}."
            )
        cosine = max(0.0, 1.0 - found.energy_lost) ** 0.5  # what is kept is a projection of the difference
        if least is not None and cosine < least:
            raise VerificationError(
                f"The cosine of the adapter with the difference is {cosine:.3f}, below "
                f"{say('min_cosine', least)}: give it a larger {say('rank').rstrip('=')}."
            )

    def _check_written(self, found: Difference, kind: str) -> None:
        """Raises VerificationError: rounding costs a module more than it may."""
        check_close(found, kind)
        worst, most = found.worst(1)[0], self.draft.request.max_error
        if most is not None and not worst.error <= most:
            raise VerificationError(
                f"{printable(worst.name)} is off by {worst.error:.1e} of its norm after rounding, more than "
                f"{say('max_error', most)}: use a wider {say('dtype').rstrip('=')}."
            )

    def _beside(self) -> tuple[Beside, ...]:
        """What differs beside the modules. Raises IncompatibleError: nobody has said what then."""
        pair = self.draft.pair
        found = tuple(pair.beside(chooser(self.draft.request)))
        real = [name_of(each.key) for each in found if not each.rounded]
        if real and self.draft.request.extras == "refuse":
            raise IncompatibleError(
                f"{printable(pair.tuned.name)} also changes {counted(len(real), 'tensor')} of which no "
                f"low-rank update is made: norms, biases, embeddings ({told(real)}). Decide with "
                f"{say('extras')}: drop leaves them out, first keeps them whole, which vLLM and "
                "llama.cpp do not load."
            )
        return found
