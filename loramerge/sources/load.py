"""One adapter as a value: what `lm.load` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loramerge import formats
from loramerge.adapters.adapter import Adapter
from loramerge.formats.peft.alpha import Alpha
from loramerge.request.entry import part
from loramerge.request.request import Request
from loramerge.request.signature import spelled
from loramerge.sources.aid import aid


@spelled("load")
def load(
    source: str | Path | Adapter,
    alpha: Alpha | None = None,
    *,
    optional: bool = False,
    initial: str | Path | None = None,
    peeking: bool = False,
    **asked: Any,
) -> Adapter:
    """Read an adapter of any format (see docs/formats.md). Only its header is read; tensors when asked for.

    Args:
        source: a path, with `#name` for one of several adapters in it; or a repository on the Hub
            (`org/name`, `org/name@revision`, `hf://org/name@revision/path`), which is downloaded. An
            `Adapter` comes back as it is.
        alpha: for a file that does not say its own: a number, ``"rslora:16"`` for 16/√r, or ``"rank"`` for
            scale 1.
        optional: where the source says its own alpha, ignore `alpha` instead of refusing it.
        initial: the folder of the adapter that a PiSSA, OLoRA, CorDA or LoRA-GA training began with.
        peeking: on the Hub read only the header; a tensor is then fetched when it is asked for.
        {asked}

    Raises:
        SourceError: absent, cut short or malformed; on the Hub missing, gated, not to be reached.
        IncompatibleError: no sum of low-rank updates; of unknown alpha; it needs a base.
        UsageError: an alpha for a source that says its own.

    >>> load("fixtures/a.safetensors")
    <Adapter fixtures/a.safetensors: 12 modules, rank 8>
    """
    request = Request(**part("load", None, asked)[0])
    return formats.load(
        source,
        alpha,
        optional=optional,
        allow_pickle=request.allow_pickle,
        initial=initial,
        peeking=peeking,
        aid=aid(request.base, request.prompt_gate, request.names),
    )
