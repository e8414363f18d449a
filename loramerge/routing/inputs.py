"""What a caller hands to a bundle: tokens, rows, prompts; each held against what the module needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.errors import UsageError, printable
from loramerge.routing.gates.gate import Gate
from loramerge.routing.gates.outchan import Outchan

Rows = str | Sequence[str] | None  # one row for all tokens, or one for each


class NoModule(UsageError, KeyError):
    """A bundle has no module of that name."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would put it in quotes


def tokens_of(x: Any, target: Target | str, ins: int) -> Array:
    """(…, in) in float64; tensors of torch are taken too.

    Raises:
        UsageError: these are no finite real numbers, or of another width.
    """
    found = _numbers(x, "x")
    if not found.ndim or found.shape[-1] != ins:
        has = f"has {found.shape[-1]}" if found.ndim else "is a single number"
        raise UsageError(f"{printable(target)} takes {ins} inputs, and x {has}.")
    return found


def prompt_of(prompt: Any, gate: Gate) -> Array | None:
    """(p, m) in float64.

    Raises:
        UsageError: the gate goes by the prompt, and none is given, or one of another shape.
    """
    check_prompt(gate, getattr(prompt, "shape", None if prompt is None else np.shape(prompt)))
    return None if prompt is None or gate.asks != "prompt" else _numbers(prompt, "prompt")


def check_prompt(gate: Gate, shape: Sequence[int] | None) -> None:
    """Raises UsageError: hidden states of this shape do not fit the gate; None: there are none."""
    if gate.asks != "prompt":
        return
    if shape is None:
        raise UsageError("The gate outchan goes by the prompt: give its hidden states as prompt=.")
    width = gate.hidden if isinstance(gate, Outchan) else shape[-1]
    if len(shape) != 2 or shape[1] != width or not shape[0]:
        raise UsageError(
            f"prompt= must be the hidden states of a prompt, (tokens, {width}), and has the shape "
            f"{tuple(shape)}."
        )


def check_names(gate: Gate, row: Rows) -> None:
    """Raises UsageError: these are no names of rows, or the gate has no such row."""
    for name in [row] if row is None or isinstance(row, str) else _names(row):
        gate.row(name)


def rows_of(gate: Gate, row: Rows, requests: int, tokens: int) -> Array | None:
    """(tokens, E) the weights that the requests ask for, (1, E) where they ask for the same.

    The tokens of each request stand together.

    Raises:
        UsageError: these are no names, there is no such row, or not one for each request.
    """
    names = [row] if row is None or isinstance(row, str) else _names(row)
    weights = [gate.row(name) for name in names]
    if weights[0] is None:
        return None
    if len(names) not in (1, requests):
        raise UsageError(f"There are {len(names)} rows for {requests} requests: give one for each.")
    found = np.array(weights)
    return found if len(names) == 1 else np.repeat(found, tokens // len(names), axis=0)


def _names(row: Any) -> list[str]:
    names = list(row) if isinstance(row, Sequence | np.ndarray) and not isinstance(row, bytes) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise UsageError(
            f"A row is named by text, or one by text for each request, not {printable(row, 60)}."
        )
    return names


def _numbers(x: Any, name: str) -> Array:
    """Real numbers of NumPy, torch, or nested lists."""
    if hasattr(x, "detach"):
        x = x.detach().cpu().double().numpy()
    try:
        found = np.asarray(x)
        fits = found.dtype.kind in "iufb" and found.size == np.isfinite(found).sum()
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise UsageError(
            f"{name} must be an array of finite real numbers, and {printable(repr(x), 60)} is not."
        )
    return found.astype(np.float64)
