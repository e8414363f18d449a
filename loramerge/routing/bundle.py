"""A bundle: the adapters kept apart, with a gate that says for each token how much of each takes part."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from loramerge.adapters.adapter import Adapter, BaseModel, Computed, Provenance, Slot
from loramerge.adapters.lowrank import LowRank
from loramerge.adapters.patterns.search import searcher
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.arrays.dtypes import FLOATS, wide
from loramerge.charts.table import Table, numbers, texts
from loramerge.errors import IncompatibleError, UsageError, alike, printable, say
from loramerge.routing.bank import Bank, Layout, canonical, stacked
from loramerge.routing.explanation import Explanation
from loramerge.routing.gates.gate import DataFree, Gate, Seen, stored_as
from loramerge.routing.gates.names import make, name_of
from loramerge.routing.inputs import NoModule, Rows, prompt_of, rows_of, tokens_of
from loramerge.routing.maths import NUMPY

FEW = 20  # experts that a notebook shows


@dataclass(frozen=True, eq=False)
class Bundle(Mapping[Target, Bank]):
    """A lazy mapping from module to bank: `bundle[target]` reads the units when you ask for them.

    Args:
        experts: the name of each adapter in it.   gate: of all modules but those in `gates`.
        layouts: header facts of every module.   read: the bank of a module.
        dtype: of the units (safetensors name).   base: the model of the adapters.
        config: settings that PEFT needs beside ranks.   record: how it was made.
        extras: tensors that go with it, such as the heads of reward models.   notes: sentences about it.
        shared: the gates of all modules have the same tensors.
    """

    experts: tuple[str, ...]
    gate: Gate
    layouts: Mapping[Target, Layout]
    read: Callable[[Target], Bank]
    dtype: str
    base: BaseModel = field(default_factory=BaseModel)
    config: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    gates: Mapping[Target, Gate] = field(default_factory=dict)
    extras: Mapping[str, Array] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    shared: bool = False

    def __getitem__(self, target: Target | str) -> Bank:
        return self.read(self.called(target))

    def __contains__(self, target: object) -> bool:
        return target in self.layouts or any(str(each) == target for each in self.layouts)

    def __iter__(self) -> Iterator[Target]:
        return iter(self.layouts)

    def __len__(self) -> int:
        return len(self.layouts)

    def __eq__(self, other: object) -> bool:
        return self is other  # a mapping's own comparison would read every tensor of both

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<Bundle of {len(self.experts)} experts: {len(self)} modules, gate {name_of(self.gate)}>"

    def __str__(self) -> str:
        """A line for each expert."""
        rows = [(printable(n, 60), len(self._has(e)), self._most(e)) for e, n in enumerate(self.experts)]
        wide = max(len("expert"), *(len(name) for name, *_ in rows))
        lines = [f"{'expert':<{wide}}  modules  rank"]
        lines += [f"{name:<{wide}}  {count:7}  {rank:4}" for name, count, rank in rows]
        return "\n".join([*lines, f"gate {name_of(self.gate)}: {_said(self.gate)}"])

    def _repr_html_(self) -> str:
        rows = [(name, len(self._has(e)), self._most(e)) for e, name in enumerate(self.experts)]
        table = Table((*texts("expert"), *numbers("modules", "rank")), rows)
        return f"{table.head(FEW)._repr_html_()}<p>{html.escape(str(self).splitlines()[-1])}</p>"

    def _has(self, expert: int) -> list[Layout]:
        return [layout for layout in self.layouts.values() if layout.ranks[expert]]

    def _most(self, expert: int) -> int:
        return max((layout.ranks[expert] for layout in self.layouts.values()), default=0)

    def called(self, name: Target | str) -> Target:
        """The module of that name. Raises NoModule: there is none."""
        if name in self.layouts:
            return name  # type: ignore[return-value]  # only a target is equal to one
        found = next((target for target in self.layouts if str(target) == str(name)), None)
        if found is None:
            near = alike(str(name), map(str, self.layouts))
            hint = f" Did you mean {printable(near[0])}?" if near else ""
            raise NoModule(f"The bundle has no module {printable(name)}.{hint}")
        return found

    def gate_of(self, target: Target) -> Gate:
        """The gate of a module."""
        return self.gates.get(target, self.gate)

    @property
    def rank(self) -> int:
        """The largest rank of an expert in a module."""
        return max((rank for layout in self.layouts.values() for rank in layout.ranks), default=0)

    def forward(self, target: Target | str, x: Array, row: Rows = None, prompt: Array | None = None) -> Array:
        """What the bundle adds to the output of a module: Y = (G ∘ X downᵀ) upᵀ, in float64.

        Args:
            x: (…, in) tokens.   row: the row of a table or task: one for all, or one for each first index.
            prompt: (p, m) hidden states of the prompt, for the gate outchan.

        Returns:
            (…, out)

        Raises:
            UsageError: there is no such module, x is of another width or no real numbers, or the gate must
                be told a row or a prompt, or has no such row.
        """
        target = self.called(target)
        x = tokens_of(x, target, self.layouts[target].shape[1])
        seen, bank = self._seen(target, x, row, prompt)
        gate, up = self.gate_of(target), wide(bank.up)
        return moved(gate, seen, up.T).reshape(*x.shape[:-1], len(up))

    def explain(
        self, target: Target | str, x: Array, row: Rows = None, prompt: Array | None = None
    ) -> Explanation:
        """Which units fire for some tokens and why, and how far each expert moves their outputs.

        Arguments and errors as for `forward`; there must be a token.
        """
        target = self.called(target)
        x = tokens_of(x, target, self.layouts[target].shape[1])
        if not x.size:
            raise UsageError(f"x has no tokens, so that there is nothing to explain in {printable(target)}.")
        seen, bank = self._seen(target, x, row, prompt)
        gate = self.gate_of(target)
        weights = gate.weigh(seen)
        units = np.broadcast_to(spread(gate, weights, seen), seen.units.shape)
        outputs = weights if gate.by == "output" else 1.0
        up, parts = wide(bank.up), [bank.layout.of(e) for e in range(bank.layout.experts)]
        moves = [((units * seen.units)[:, mine] @ up[:, mine].T) * outputs for mine in parts]
        lengths = np.stack([np.linalg.norm(each, axis=1) for each in moves], axis=1)
        scores = None if gate.by == "output" else np.broadcast_to(gate.scores(seen), weights.shape)
        chosen = np.broadcast_to(spread(gate, scores, seen), units.shape) if scores is not None else None
        return Explanation(
            str(target), name_of(gate), self.experts, bank.layout, units, lengths, chosen, gate.options()
        )

    def _seen(self, target: Target, x: Array, row: Rows, prompt: Array | None) -> tuple[Seen, Bank]:
        gate = self.gate_of(target)
        said, bank = prompt_of(prompt, gate), self.read(target)
        tokens, down = x.reshape(-1, x.shape[-1]), wide(bank.down)
        tensors = {name: wide(tensor) for name, tensor in bank.tensors.items()}
        rows = rows_of(gate, row, len(x), len(tokens))
        layout = bank.layout
        units, owner, members = tokens @ down.T, layout.owner, layout.members
        seen = Seen(tokens, units, owner, members, tensors, layout, NUMPY, rows, said)
        return seen, bank

    def gated(self, gate: str | Gate, only: str | None = None, **options: Any) -> Bundle:
        """The same experts with another gate that needs no data; `only` in modules whose name it finds.

        Raises:
            UsageError: the gate comes with a file, or weighs other units than those of the bundle.
        """
        made = make(gate, options).settled(len(self.experts))
        if not isinstance(made, DataFree):
            raise UsageError(f"The gate {name_of(made)} comes with a file: it cannot be made of adapters.")
        found = (lambda name: True) if only is None else searcher(only, "only")
        chosen = {target for target in self.layouts if found(str(target))}
        if not chosen:
            raise UsageError(f"No module is called like {say('only', only)}.")

        kind = stored_as(made, self.dtype)

        def read(target: Target) -> Bank:
            bank = cast(self.read(target), kind)
            return gated(bank, made) if target in chosen else bank

        rest = {t: self.gate_of(t) for t in self.layouts if t not in chosen}
        gates = {**rest, **dict.fromkeys(chosen, made)}
        common = made if len(chosen) == len(self.layouts) else self.gate
        others = {t: gates[t] for t in self.layouts if gates[t] != common}
        return replace(self, gate=common, gates=others, read=read, dtype=kind, shared=False)

    def flat(self, row: str | None = None, prompt: Array | None = None) -> Adapter:
        """One plain adapter that does the same for every token, exactly.

        Args:
            row: of a table or a task.   prompt: hidden states of the one prompt that it is for.

        Raises:
            IncompatibleError: a gate goes by its input, so that no adapter does the same.
        """
        slots = {target: self._flat(target, row, prompt) for target in self.layouts}
        return Adapter("bundle", slots, self.base, config=self.config, provenance=Provenance("bundle"))

    def _flat(self, target: Target, row: str | None, prompt: Array | None) -> Slot:
        layout, gate = self.layouts[target], self.gate_of(target)
        prompt = prompt_of(prompt, gate)
        constant = gate.row(row) if gate.asks == "row" or name_of(gate) == "static" else None
        if constant is None and gate.asks != "prompt" and not _may_be_constant(self, target):
            raise IncompatibleError(
                f"The gate {name_of(gate)} of {printable(target)} goes by the input, so no single adapter "
                "does what the bundle does. Run it as a bundle, or give it a gate that is the same for every "
                f"token: `loramerge route` with {say('gate', 'static')}."
            )

        def made() -> LowRank:
            return flattened(self.read(target), gate, constant, prompt)

        shape, units = layout.shape, layout.units
        return Slot(
            Computed((shape[0], units), lambda: made().up),
            Computed((units, shape[1]), lambda: made().down),
            1.0,
        )


def _said(gate: Gate) -> str:
    """The options of a gate in words."""
    return printable(", ".join(f"{name} {value}" for name, value in gate.options().items()))


def _may_be_constant(bundle: Bundle, target: Target) -> bool:
    bank = bundle.read(target)
    return bundle.gate_of(target).constant(bank.layout, bank.tensors) is not None


def flattened(bank: Bank, gate: Gate, row: Sequence[float] | None, prompt: Array | None) -> LowRank:
    """The update of a bank whose gate gives every token the same weights."""
    up, down = wide(bank.up), wide(bank.down)
    if gate.by == "output":
        tensors = {name: wide(tensor) for name, tensor in bank.tensors.items()}
        nothing = np.zeros((0, bank.layout.shape[1]))
        said = np.asarray(prompt, dtype=np.float64)
        seen = Seen(nothing, nothing, None, None, tensors, bank.layout, NUMPY, None, said)
        return LowRank(gate.weigh(seen).T * up, down)
    weights = np.array(row) if row is not None else gate.constant(bank.layout, bank.tensors)
    assert weights is not None
    return LowRank(up * (weights[bank.layout.owner] if gate.by == "expert" else weights), down)


def gated(bank: Bank, gate: DataFree) -> Bank:
    """The bank with the tensors of a gate, in the units that it weighs."""
    bank = bank if gate.basis == "stored" else canonised(bank)
    return replace(bank, tensors={n: np.asarray(t, np.float32) for n, t in gate.keys(bank).items()})


def cast(bank: Bank, dtype: str) -> Bank:
    """The bank with its units in this type."""
    kind = FLOATS[dtype]
    return replace(bank, up=bank.up.astype(kind, copy=False), down=bank.down.astype(kind, copy=False))


def canonised(bank: Bank) -> Bank:
    """The same experts in canonical units, as they are stored."""
    up, down = stacked([canonical(bank.expert(e)) for e in range(bank.layout.experts)])
    return replace(bank, up=up.astype(bank.up.dtype), down=down.astype(bank.down.dtype))


def spread(gate: Gate, weights: Any, seen: Seen) -> Any:
    """The weight of every unit (n, R); a gate of outputs lets all of them through."""
    if gate.by == "output":
        return seen.units * 0 + 1
    return weights[:, seen.owner] if gate.by == "expert" else weights


def moved(gate: Gate, seen: Seen, up: Any) -> Any:
    """Y (n, out) = (G ∘ H) upᵀ, or g ∘ (H upᵀ) where outputs are weighed; `up` is (R, out)."""
    weights = gate.weigh(seen)
    if gate.by == "output":
        return (seen.units @ up) * weights
    return (spread(gate, weights, seen) * seen.units) @ up
