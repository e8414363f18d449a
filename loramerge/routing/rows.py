"""Rows of weights by name, from a file: what the gate table is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from loramerge.arrays import dtypes
from loramerge.errors import SourceError, UsageError, printable, say
from loramerge.formats.files.json import read_object
from loramerge.formats.files.npz import read_npz
from loramerge.formats.files.safetensors import open_file


def read_rows(path: Path) -> dict[str, tuple[float, ...]]:
    """Name -> weights, of a .json, .npz or .safetensors.

    Raises:
        UsageError: another kind of file.   SourceError: it cannot be read, or has no rows of numbers.
    """
    shown = str(path)
    if path.suffix == ".json":
        table = read_object(path, shown)
    elif path.suffix == ".npz":
        table = read_npz(path, shown)
    elif path.suffix == ".safetensors":
        table = {name: dtypes.wide(t.read()) for name, t in open_file(path, shown).tensors.items()}
    else:
        raise UsageError(f"{say('table')} {printable(path)} is no .json, .npz or .safetensors.")
    return {name: _row(name, values, shown) for name, values in table.items()}


def _row(name: str, values: object, shown: str) -> tuple[float, ...]:
    try:
        row = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        row = np.empty((0, 0))
    if row.ndim != 1 or not row.size:
        raise SourceError(f"{printable(name)} in {printable(shown)} is not a list of numbers.")
    return tuple(map(float, row))
