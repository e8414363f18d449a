"""What other programs make of an adapter, with what its form needs to be read."""

from __future__ import annotations

from pathlib import Path

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.arguments import checked
from loramerge.consumers import find
from loramerge.consumers.bundles import examined
from loramerge.consumers.check import facts_of
from loramerge.consumers.facts import Facts
from loramerge.consumers.finding import Finding
from loramerge.errors import UsageError, say
from loramerge.formats.bundles import is_bundle
from loramerge.routing.reader import load_bundle
from loramerge.sources.aid import aid


@checked("consumer", "max_rank", "allow_pickle", "base")
def check(
    source: str | Path | Adapter,
    consumer: str,
    *,
    max_rank: int | None = None,
    allow_pickle: bool = False,
    base: str | Path | None = None,
) -> list[Finding]:
    """What a program would do wrong with an adapter; empty if it loads the adapter as it is meant.

    Where nobody can tell, there is one finding whose effect is ``unknown``.

    Args:
        source: a folder, a file, or a name on the Hub, where only the header is read. An `Adapter` made in
            memory is judged as `save` would write it. A bundle of `route` is read as a whole, on the Hub by
            its headers.
        consumer: the name of a program, such as vllm; docs/consumers.md lists them.
        max_rank: the largest rank that you let the program load; vLLM's own default is 16.
        allow_pickle, base: as for `load`.

    Raises:
        UsageError: no such consumer, or no possible rank.
        SourceError, IncompatibleError: as `load`, for files that cannot be read at all.

    >>> [finding.sentence for finding in check("fixtures/a.safetensors", "vllm")]
    ['vLLM rejects it: it loads a folder with an adapter_config.json, and this is one file.']
    """
    if max_rank is not None and max_rank < 1:
        raise UsageError(f"{say('max_rank', max_rank)} must be at least 1.")
    return examined(find(consumer), looked_at(source, allow_pickle, base), max_rank)


def looked_at(source: str | Path | Adapter, allow_pickle: bool, base: str | Path | None) -> Facts:
    """What programs look at; of a bundle all is read, so that damage does not pass.

    Raises:
        SourceError: a part of a bundle is missing, does not fit the others, or holds no numbers.
    """
    if is_bundle(source):
        bundle = load_bundle(str(source))
        for target in bundle:
            bundle.read(target)
    return facts_of(source, allow_pickle, aid(base, None))
