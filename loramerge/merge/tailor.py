"""A merge for one consumer: with the ranks, the dtype and the layout that this program loads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from loramerge.algorithms import Method, name_of
from loramerge.consumers import find
from loramerge.consumers.check import of_outline
from loramerge.consumers.consumer import Consumer
from loramerge.consumers.finding import Finding, loads
from loramerge.errors import IncompatibleError, UsageError, printable, say
from loramerge.formats.output import Outline
from loramerge.formats.peft.profiles import Profile

SINGLE = "F32"  # no consumer computes in more


@dataclass(frozen=True)
class Tailor:
    """What a merge for a consumer must keep to.

    Args:
        consumer: the program that loads the merge.   max_rank: its rank limit, if the user has changed it.
        allow_unknown: write the merge even if nobody can tell whether the program loads it.
    """

    consumer: Consumer
    max_rank: int | None = None
    allow_unknown: bool = False

    @classmethod
    def of(cls, consumer: str | None, max_rank: int | None, allow_unknown: bool = False) -> Self | None:
        """Raises UsageError: no such consumer, a rank limit for none, or no possible one."""
        if max_rank is not None and max_rank < 1:
            raise UsageError(f"{say('max_rank', max_rank)} must be at least 1.")
        if consumer is not None:
            return cls(find(consumer), max_rank, allow_unknown)
        if max_rank is not None:
            raise UsageError(f"{say('max_rank', max_rank)} is for a program: name it by {say('consumer')}.")
        return None

    @property
    def limit(self) -> int | None:
        """The largest rank that it will load."""
        return self.max_rank or self.consumer.max_rank

    def check_profile(self, profile: Profile) -> None:
        """Raises UsageError: it does not read the patterns of that profile."""
        if profile == "compact" and not self.consumer.patterns:
            raise UsageError(
                f"{self.consumer.title} reads no ranks by module, so the compact profile is not for it: drop "
                f"{say('profile', 'compact')}."
            )

    def dtype(self, widest: str) -> str:
        """The type of the output where nobody gave one."""
        return SINGLE if widest == "F64" else widest

    def check_destination(self, out: Path, bare: bool) -> None:
        """Raises UsageError: it loads folders, and this is one file."""
        if bare and self.consumer.folder:
            raise UsageError(
                f"{self.consumer.title} loads a folder with an adapter_config.json: write to "
                f"{printable(out.stem)} instead of {printable(out.name)}."
            )

    def narrower(self, method: Method, size: int, given: str) -> Method | None:
        """The method with the rank that it loads; None if the merge has no more units than that.

        Args:
            size: the rank that the merge would have.   given: what the user said of its size.

        Raises:
            UsageError: the size was asked for, or the method has no rank.
        """
        # Only an open size is changed; one that was asked for is refused, not cut.
        if self.limit is None or size <= self.limit:
            return None
        above = f"{self.consumer.title} loads rank {self.limit} at most{self._advice(size)}"
        if given:
            raise UsageError(f"{given} gives rank {size}, and {above}.")
        if "rank" not in type(method).__dataclass_fields__:
            raise UsageError(
                f"{name_of(method)} gives rank {size}, and {above}; or take one with a rank, such as svd."
            )
        return replace(method, **{"rank": self.limit})

    def _advice(self, size: int) -> str:
        option = self.consumer.rank_option
        started = f", and start it with {option} {size} or more" if option else ""
        return f": give {say('max_rank', size)}{started}"

    def checked(self, outline: Outline, narrowed: bool) -> tuple[str, ...]:
        """Sentences about what was done for it.

        Raises:
            IncompatibleError: it would not load the merge as it is meant.
        """
        # The findings of `check` themselves: what is written for a program and what is said of it agree.
        found = self.consumer.findings(of_outline(outline, "merged"), self.limit)
        cut = [
            f"rank {self.limit} is the largest that {self.consumer.title} loads, so the merge is cut to it"
        ]
        cut = cut if narrowed else []
        if loads(found) is None and self.allow_unknown:
            return (*cut, found[0].sentence)
        if found:
            raise IncompatibleError(f"{found[0].sentence} {self._remedy(found[0], outline)}")
        own = f"{self.consumer.title} {self.consumer.version} loads the merge as it is meant"
        return (*cut, own)

    def _remedy(self, finding: Finding, outline: Outline) -> str:
        if finding.effect == "unknown":
            return f"Add {say('allow_unknown', True)} to write it nevertheless."
        if outline.extras and any(key in finding.sentence for key in outline.extras):
            return f"{say('extras', 'drop')} leaves these tensors out."
        if finding.mend and not finding.command:
            return f"What helps: {finding.mend}."
        return f"Merge without {say('consumer', self.consumer.name)} if it is for another program."
