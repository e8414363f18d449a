"""Heads, embeddings and token rows that an adapter trained as a whole, turned into low-rank pairs.

    ΔW = W' − W        of a head that has few rows, or of the rows that were trained, the exact pair is

    up = the rows themselves, or 1        down = 1, or the rows

Servers load such pairs. No adapter holds the weights before training, so they are read from the base model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from loramerge.adapters.adapter import Adapter, Held, Slot, Tensor
from loramerge.adapters.target import Target
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array
from loramerge.checkpoints.checkpoint import Checkpoint
from loramerge.checkpoints.open import open_checkpoint
from loramerge.checkpoints.places import Places
from loramerge.checkpoints.tie import embedding, is_plain, is_tied
from loramerge.errors import IncompatibleError, printable, say
from loramerge.formats.peft import beside
from loramerge.formats.peft.names import PREFIX, unmarked
from loramerge.formats.vocabulary import INPUTS

TOKEN = ".token_adapter"  # where PEFT keeps token rows


def as_pairs(adapters: list[Adapter], base: str | Path | None) -> list[Adapter]:
    """The adapters with pairs in place of what they trained as a whole.

    Raises:
        IncompatibleError: the base has no such weights, or of another size.
    """
    if base is None or not any(adapter.extras for adapter in adapters):
        return adapters
    checkpoint = open_checkpoint(base)
    return [_Heads(checkpoint, adapter).paired() for adapter in adapters]


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a table that were trained, and by how much each."""

    numbers: Array  # (k,)
    change: Array  # (k, dim), float64
    size: int  # of the table

    def pair(self, turned: bool) -> Slot:
        """The exact pair of the smaller rank; `turned` as of an embedding, (dim, tokens)."""
        rows, width = self.change.shape
        kind = np.float32
        if rows <= width:
            chosen = np.zeros((self.size, rows), kind)
            chosen[self.numbers, np.arange(rows)] = 1
            up, down = chosen, self.change.astype(kind)
        else:
            up, down = np.zeros((self.size, width), kind), np.eye(width, dtype=kind)
            up[self.numbers] = self.change
        if turned:
            up, down = np.ascontiguousarray(down.T), np.ascontiguousarray(up.T)
        return Slot(Held(up), Held(down), 1.0)


@dataclass(frozen=True, eq=False)
class _Heads:
    """What one adapter trains as a whole, and the model that it was trained on."""

    base: Checkpoint
    adapter: Adapter

    def paired(self) -> Adapter:
        """The adapter with pairs in their place."""
        slots, extras, notes = dict(self.adapter.slots), dict(self.adapter.extras), []
        for key in self.adapter.extras:
            for target, rows in self._of(key):
                self._check_alone(target)
                slots[target] = rows.pair(target.kind == "embedding")
                rank = slots[target].rank
                notes.append(f"its {printable(target)} is a pair of rank {rank} here, exactly")
                extras.pop(key, None)
        if len(extras) == len(self.adapter.extras):
            return self.adapter
        oddities = (*self.adapter.oddities, *notes)
        return replace(self.adapter, slots=slots, extras=extras, oddities=oddities, renamed=True)

    def _of(self, key: str) -> Iterator[tuple[Target, Rows]]:
        """The modules that a tensor changes; none if it is no matrix over rows."""
        adapter, tensor = self.adapter, self.adapter.extras[key]
        role, path = beside.role(key, adapter), unmarked(key).removeprefix(PREFIX).rpartition(".")[0]
        path = path.removesuffix(beside.BASE).removesuffix(TOKEN)
        if role == "tokens":
            yield from self._everywhere(path, self._tokens(path, tensor, self._before(path)))
        elif role in ("head", "embedding") and key.endswith(".weight") and len(tensor.shape) == 2:
            yield _target(path), self._whole(path, tensor)

    def _before(self, path: str) -> Tensor:
        """The weights of the base. Raises IncompatibleError: it has none of that name."""
        found = Places(self.base, self.adapter).tensor("model", path, "weight")
        if found is None and path.rpartition(".")[2] == "lm_head":  # tied to the embedding
            found = next((((key, (), False)) for key in self.base.tensors if _is_input(key[1])), None)
        if found is None:
            raise IncompatibleError(
                f"{printable(self.base.name)} has no {printable(path)}, which {printable(self.adapter.name)} "
                f"trains as a whole: without the weights before training there is no pair. Keep it with "
                f"{say('extras', 'first')}, without {say('heads_as_lora')}."
            )
        return self.base.tensors[found[0]]

    def _whole(self, path: str, tensor: Tensor) -> Rows:
        before = self._before(path)
        if before.shape != tensor.shape:
            raise self._resized(path, tensor, before)
        change = _wide(tensor) - _wide(before)
        numbers = np.flatnonzero(change.any(axis=1))
        numbers = numbers if len(numbers) else np.arange(1)  # a pair has at least one unit
        return Rows(numbers, change[numbers], len(change))

    def _tokens(self, path: str, tensor: Tensor, before: Tensor) -> Rows:
        ids = beside.token_ids(self.adapter, path)
        inside = all(i < before.shape[0] for i in ids) and len(set(ids)) == tensor.shape[0] == len(ids)
        if not inside or before.shape[1:] != tensor.shape[1:]:
            raise self._resized(path, tensor, before)
        return Rows(np.array(ids), _wide(tensor) - _wide(before)[ids], before.shape[0])

    def _everywhere(self, path: str, rows: Rows) -> Iterator[tuple[Target, Rows]]:
        """Token rows change a head too, if it is tied to the embedding."""
        yield _target(path), rows
        source, reads = embedding(self.base), self.base.config("model").get("is_encoder_decoder")
        if source is not None and not reads and is_plain(self.base, source) and is_tied(self.base):
            yield Target("lm_head"), rows

    def _check_alone(self, target: Target) -> None:
        if target in self.adapter.slots:
            raise IncompatibleError(
                f"{printable(self.adapter.name)} has a pair of {printable(target)} and trains it as a whole "
                "too: its files do not say which of the two is meant."
            )

    def _resized(self, path: str, tensor: Tensor, before: Tensor) -> IncompatibleError:
        return IncompatibleError(
            f"{printable(path)} is {list(tensor.shape)} in {printable(self.adapter.name)} and "
            f"{list(before.shape)} in {printable(self.base.name)}: no pair adds rows. Name a base with the "
            "same tokens."
        )


def _target(path: str) -> Target:
    return Target(path, kind="embedding" if path.rpartition(".")[2] in INPUTS else "linear")


def _is_input(name: str) -> bool:
    path, _, last = name.rpartition(".")
    return last == "weight" and path.rpartition(".")[2] in INPUTS


def _wide(tensor: Tensor) -> Array:
    return dtypes.wide(np.asarray(tensor.read()))
