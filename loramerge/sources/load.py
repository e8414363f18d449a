"""One adapter as a value: what `lm.load` does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loramerge import formats
from loramerge.adapters.adapter import Adapter
from loramerge.arrays.backend import Array
from loramerge.errors import UsageError, say
from loramerge.formats.files.safetensors import open_file
from loramerge.formats.forms.form import NO_AID, Aid, Base
from loramerge.formats.peft.alpha import Alpha
from loramerge.request.entry import part
from loramerge.request.request import Request
from loramerge.request.signature import spelled


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


def aid(
    base: str | Path | Base | None,
    gate: str | Path | None,
    names: Mapping[str, str] | None = None,
    kept: bool = False,
) -> Aid:
    """What is given beside the files of an adapter, opened.

    Raises:
        SourceError, IncompatibleError: as for `open_base`; or the gate cannot be read.
    """
    if base is None and gate is None and names is None and not kept:
        return NO_AID
    if names is not None and names.keys() != {"down", "up"}:
        raise UsageError(
            f"{say('names')} says how the keys of down and of up end: give both, and nothing else."
        )
    if base is not None:
        from loramerge.checkpoints.base import open_base  # few adapters need the base model

        base = open_base(base)
    return Aid(base, None if gate is None else _gate(Path(gate)), names, kept)


def _gate(path: Path) -> dict[str, Array]:
    """Module -> vector."""
    if path.suffix == ".npz":
        from loramerge.formats.files.npz import read_npz  # few have a gate in one

        return read_npz(path, str(path))
    return {key: tensor.read() for key, tensor in open_file(path, str(path)).tensors.items()}
