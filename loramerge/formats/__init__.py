"""File formats: the only place that knows them. `load` finds the dialect; `create` writes."""

from __future__ import annotations

import os
import re
from pathlib import Path

from loramerge import dtypes, rounding
from loramerge.adapter import Adapter
from loramerge.errors import SourceError, UsageError, printable
from loramerge.formats import output, portable
from loramerge.formats.alpha import Alpha, check_alpha
from loramerge.formats.config import changes_base
from loramerge.formats.extras import settle
from loramerge.formats.initial import made_plain
from loramerge.formats.keys import common_rank
from loramerge.formats.peft import load_file, load_folder

HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*(?<!\.safetensors)")  # how the Hub names a repository

__all__ = ["Alpha", "load", "save"]


def load(
    source: str | Path | Adapter,
    alpha: Alpha | None = None,
    *,
    optional: bool = False,
    allow_pickle: bool = False,
    initial: str | Path | None = None,
) -> Adapter:
    """Read an adapter: a PEFT folder or a bare .safetensors. Only headers are read; tensors when asked.

    Args:
        source: a path; an `Adapter` comes back as it is.
        alpha: for a bare file that does not say its own: a number, or ``"rank"`` for scale 1.
        allow_pickle: read .bin and .pt files too. Nothing in them is run.
        initial: the folder of the adapter that a PiSSA, OLoRA, CorDA or LoRA-GA training began with.
        optional: leave `alpha` aside, instead of refusing it, where the source says its own.

    Raises:
        SourceError: absent, cut short or malformed.
        IncompatibleError: no plain LoRA, or of unknown alpha.
        UsageError: an alpha for a source that says its own.

    >>> load("fixtures/a.safetensors")
    <Adapter fixtures/a.safetensors: 12 modules, rank 8>
    """
    if isinstance(source, Adapter):
        return source
    check_alpha(alpha)
    path, name = Path(source), str(source) or "."
    if initial is not None:
        return _made_plain(path, Path(initial), alpha, allow_pickle)
    if os.path.isdir(path):
        return load_folder(path, name.rstrip("/") or name, alpha, optional, allow_pickle)
    if HUB.fullmatch(name) and not os.path.exists(path):
        raise SourceError(
            f"{printable(name)} does not exist here. If you mean a repository of the Hub: download it first."
        )
    return load_file(path, name, alpha, optional, allow_pickle)


def _made_plain(path: Path, start: Path, alpha: Alpha | None, allow_pickle: bool) -> Adapter:
    if not os.path.isdir(path) or not os.path.isdir(start):
        odd = start if os.path.isdir(path) else path
        raise UsageError(f"--initial is for PEFT folders, and {printable(odd)} is none.")
    adapter, first = (
        load_folder(each, str(each), alpha, True, allow_pickle, known_start=True) for each in (path, start)
    )
    if not changes_base(adapter.config):
        raise UsageError(f"{printable(path)} is a plain LoRA already: drop --initial for it.")
    return made_plain(adapter, first)


def save(adapter: Adapter, out: str | Path, *, dtype: str | None = None, overwrite: bool = False) -> None:
    """Write an adapter in the portable profile: a PEFT folder, or one file if `out` ends in .safetensors.

    Scales are folded into ``lora_B`` in float64 and rounded once; other tensors are written as they are.

    Raises:
        OutputError: `out` exists and `overwrite` is not set, or cannot be written.
        IncompatibleError: a value does not fit the dtype.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(load("fixtures/b.safetensors"), f"{folder}/b", dtype="bfloat16")
    ...     load(f"{folder}/b").dtype
    'BF16'
    """
    kind = adapter.dtype if dtype is None else dtypes.parse(dtype)
    shapes = {target: slot.shape for target, slot in adapter.slots.items()}
    rank = common_rank({target: slot.rank for target, slot in adapter.slots.items()})
    kept = settle([adapter], [1.0], "first", shapes)
    config = {**portable.config([adapter], shapes, rank), **kept.config}
    outline = output.Outline(shapes, rank, kind, config, extras=kept.tensors)
    path = Path(out)
    with output.create(path, output.is_bare(path), outline, overwrite) as draft:
        for target, update in adapter.items():
            up = dtypes.wide(update.up) * update.scale
            draft.put(
                target,
                *rounding.store(up, dtypes.wide(update.down), kind, outline.width(target), str(target)),
            )
        draft.close()
