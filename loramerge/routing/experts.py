"""From adapters to a bundle: their units side by side, module by module, with a gate that needs no data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from loramerge.adapters.adapter import Adapter, BaseModel
from loramerge.adapters.lowrank import LowRank
from loramerge.adapters.target import Target
from loramerge.arrays import rounding
from loramerge.arrays.dtypes import wide
from loramerge.errors import IncompatibleError, SourceError, printable, say
from loramerge.routing.bank import Bank, Layout, canonical, stacked
from loramerge.routing.bundle import Bundle, gated
from loramerge.routing.gates.gate import DataFree, stored_as
from loramerge.sources.extremes import check_sizes

KINDS = {"embedding": "an embedding", "expert": "a fused expert"}


@dataclass(frozen=True, eq=False)
class Experts:
    """Adapters under common names, and others whose mean is taken away from each of them.

    Args:
        adapters: (E,) the experts.   general: (G,) adapters of what all tasks share.
        dtype: of the units (safetensors name).
    """

    adapters: Sequence[Adapter]
    general: Sequence[Adapter] = ()
    dtype: str = "F32"
    notes: tuple[str, ...] = field(default=())

    def layouts(self) -> dict[Target, Layout]:
        """Every module that one of them has."""
        found = {}
        for target in sorted({t for a in (*self.adapters, *self.general) for t in a}):
            _check_kind(target)
            shared = sum(self._rank(a, target) for a in self.general)
            ranks = tuple(self._rank(a, target) + shared for a in self.adapters)
            found[target] = Layout(self._shape(target), ranks)
        return found

    def bank(self, target: Target, layout: Layout, gate: DataFree) -> Bank:
        """The units of a module as they are stored, with the tensors of the gate."""
        for each in (*self.adapters, *self.general):
            if target in each.slots:
                check_sizes(each.name, str(target), each[target])
        updates = [self._update(adapter, target) for adapter in self.adapters]
        if gate.basis == "canonical":
            updates = [canonical(update) for update in updates]
        up, down = stacked(updates)
        if not (np.isfinite(up).all() and np.isfinite(down).all()):
            self._blame(target)
        stored = rounding.store(up, down, self.dtype, layout.units, str(target))
        bank = Bank(layout, *stored)
        return gated(bank, gate) if gate.basis == "stored" else _keyed(bank, gate)

    def bundle(self, gate: DataFree, base: BaseModel, config: Mapping[str, object]) -> Bundle:
        """All of them with a gate; nothing but headers is read yet."""
        layouts, settled = self.layouts(), gate.settled(len(self.adapters))
        kept = replace(self, dtype=stored_as(settled, self.dtype))
        names = tuple(adapter.name for adapter in self.adapters)

        def read(target: Target) -> Bank:
            return kept.bank(target, layouts[target], settled)

        return Bundle(names, settled, layouts, read, kept.dtype, base, config, notes=self.notes)

    def _rank(self, adapter: Adapter, target: Target) -> int:
        return adapter.slots[target].rank if target in adapter.slots else 0

    def _shape(self, target: Target) -> tuple[int, int]:
        return next(a.slots[target].shape for a in (*self.adapters, *self.general) if target in a.slots)

    def _update(self, adapter: Adapter, target: Target) -> LowRank:
        """ΔW_e - (1/G) Σ_g ΔW_g, exactly: of ΔW, never of the factors apart."""
        outs, ins = self._shape(target)
        nothing = LowRank(np.zeros((outs, 0)), np.zeros((0, ins)))
        own = adapter[target] if target in adapter.slots else nothing
        for each in self.general:
            if target in each.slots:
                own = own - each[target] * (1 / len(self.general))
        return own

    def _blame(self, target: Target) -> None:
        for adapter in (*self.adapters, *self.general):
            if target in adapter.slots:
                update = adapter[target]
                if not (np.isfinite(wide(update.up)).all() and np.isfinite(wide(update.down)).all()):
                    raise SourceError(
                        f"{printable(adapter.name)} has NaN or infinity in {printable(target)}: its training "
                        "diverged or the file is damaged."
                    )


def _keyed(bank: Bank, gate: DataFree) -> Bank:
    tensors = {name: np.asarray(tensor, np.float32) for name, tensor in gate.keys(bank).items()}
    return Bank(bank.layout, bank.up, bank.down, tensors)


def _check_kind(target: Target) -> None:
    kind = KINDS.get(target.kind, "a group of a convolution" if target.layout.blocks > 1 else "")
    if kind:
        raise IncompatibleError(
            f"{printable(target)} is {kind}, and a gate weighs the inputs of linear layers and whole "
            f"convolutions: leave it out with {say('exclude', str(target.path))}."
        )
