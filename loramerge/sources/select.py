"""The modules that are asked for: those that `only` finds and `exclude` does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.patterns.search import Matcher, searcher
from loramerge.adapters.target import Target
from loramerge.errors import UsageError, printable, say
from loramerge.formats.dialects.blocks import called


def select(adapters: list[Adapter], only: str | None, exclude: str | None) -> list[Adapter]:
    """The adapters without the modules that `only` does not find or `exclude` finds (re.search).

    Raises:
        UsageError: no regular expression, or no module is left.
    """
    wanted, unwanted = _pattern(only, "only"), _pattern(exclude, "exclude")

    if wanted is None and unwanted is None and any(adapters):
        return [replace(adapter, slots=dict(adapter.slots)) for adapter in adapters]
    names = called({target for adapter in adapters for target in adapter.slots})

    def kept(target: Target) -> bool:
        return (wanted is None or any(map(wanted, names[target]))) and not (
            unwanted is not None and any(map(unwanted, names[target]))
        )

    chosen = [replace(a, slots={t: s for t, s in a.slots.items() if kept(t)}) for a in adapters]
    if not any(chosen):
        some = printable(next((t for a in adapters for t in a), "none"))
        raise UsageError(
            f"No module is left by {say('only')} and {say('exclude')}; a module here is called {some}."
        )
    return chosen


def check_exclude(adapters: Sequence[Adapter], exclude: str | None) -> None:
    """What is to be left out is there: else the pattern is misspelt.

    Raises:
        UsageError: no module is found by it.
    """
    unwanted = _pattern(exclude, "exclude")
    names = called({target for adapter in adapters for target in adapter.slots}) if unwanted else {}
    if unwanted is not None and not any(any(map(unwanted, each)) for each in names.values()):
        some = printable(min(map(str, names), default="none"))
        raise UsageError(f"{say('exclude', exclude)} matches no module; one here is called {some}.")


def _pattern(text: str | None, option: str) -> Matcher | None:
    return None if text is None else searcher(text, say(option))
