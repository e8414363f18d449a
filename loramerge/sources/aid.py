"""What the user gives beside the files of an adapter: the base model, a gate of a prompt, ends of names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from loramerge.arrays.backend import Array
from loramerge.errors import UsageError, say
from loramerge.formats.files.safetensors import open_file
from loramerge.formats.forms.form import NO_AID, Aid, Base


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
