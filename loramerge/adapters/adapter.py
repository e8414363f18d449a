"""Adapters: what was read, lazily, and where it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

from loramerge.adapters.lowrank import LowRank
from loramerge.adapters.original import Original, open_original
from loramerge.adapters.spelling import Spelling
from loramerge.adapters.target import Target
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array
from loramerge.charts.facts import facts_html, fields_html
from loramerge.errors import SourceError, UsageError, alike, printable


class Tensor(Protocol):
    """A tensor known by its header; the numbers come when asked."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def held(self) -> int:
        """Bytes that reading takes at most, beside what it gives."""

    def read(self) -> Array: ...


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Held:
    """A tensor already in memory."""

    array: Array

    @property
    def dtype(self) -> str:
        return dtypes.name_of(self.array.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def held(self) -> int:
        return 0

    def read(self) -> Array:
        return self.array


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Computed:
    """A tensor that is computed, in float64, each time it is read.

    Args:
        held: bytes that this takes beside what it gives.
    """

    shape: tuple[int, ...]
    compute: Callable[[], Array]
    dtype: str = "F64"
    held: int = 0

    def read(self) -> Array:
        return self.compute()


@dataclass(frozen=True, eq=False, slots=True)
class Slot:
    """One update before its numbers are read: shapes, scale and where the factors lie.

    Args:
        up: (out, rank) tensor.   down: (rank, in) tensor.
        scale: factor of ``up @ down``, in float64.
    """

    up: Tensor
    down: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the update."""
        return self.up.shape[0], self.down.shape[1]

    def read(self) -> LowRank:
        return LowRank(self.up.read(), self.down.read(), self.scale)


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Scaled:
    """A vector with its scale: what an adapter adds to the bias of a module."""

    tensor: Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The model an adapter was trained on, as far as its files say."""

    name: str | None = None
    revision: str | None = None

    def _repr_html_(self) -> str:
        return fields_html(self)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an adapter came from: a name, never an absolute path, and the files behind it.

    Args:
        revision: as the user says; on the Hub, the commit.
        alpha: what the user gave for a file that does not say its own.
        hub: its place on the Hub, `org/name` or `org/name/path`.   licence: as its card says.
        marks: the SHA-256 that a file must have, where one is known.
        peeked: its tensors are still on the Hub; only the header was read.
        stated: its alphas are taken from its metadata; most of those inside the file were not read.
        initial: name of the adapter that its training began with, if it was made plain by that; the last
            `starting` files are of it.
        originals: the files as they were when they were opened, by path.
        apart: names of a tuned model and its base, and the rank, if it is what these are apart.
    """

    name: str
    revision: str | None = None
    files: tuple[Path, ...] = ()
    alpha: float | str | None = None
    hub: str | None = None
    licence: str | None = None
    marks: Mapping[str, str] = field(default_factory=dict)
    peeked: bool = False
    stated: bool = False
    initial: str | None = None
    starting: int = 0
    originals: Mapping[Path, Original] = field(default_factory=dict, repr=False)
    apart: tuple[str, str, int] | None = None

    @property
    def names(self) -> list[str]:
        """A name for each file; with its folder where another has that name, and apart what it began with."""
        plain = [path.name for path in self.files]
        own = len(plain) - self.starting
        made = [n if n not in plain[:i] else f"{self.files[i].parent.name}/{n}" for i, n in enumerate(plain)]
        return [*made[:own], *(f"initial/{name}" for name in plain[own:])]

    def sha256(self) -> dict[str, str]:
        """Name -> SHA-256 of each file, of the bytes merged.

        Raises:
            SourceError: a file cannot be read, was changed, or is not the one it should be.
        """
        found: dict[str, str] = {}
        if self.peeked:
            raise SourceError(f"Only the header of {printable(self.name)} was read: load it without peeking.")
        for name, path in zip(self.names, self.files, strict=True):
            original = self.originals.get(path) or open_original(path, path.name)
            found[name] = original.sha256()
            if self.marks.get(path.name, found[name]) != found[name]:
                raise SourceError(
                    f"{printable(path.name)} of {printable(self.name)} is not what the Hub has: it was "
                    "damaged in the cache. Remove it there (hf cache), and run again."
                )
        return found

    def confirm(self) -> None:
        """Raises SourceError: a file is no longer as it was when it was opened."""
        for original in self.originals.values():
            original.confirm()

    def _repr_html_(self) -> str:
        return fields_html(self)


@dataclass(frozen=True, eq=False, repr=False)
class Adapter(Mapping[Target, LowRank]):
    """A lazy mapping from target to update: ``adapter[target]`` reads the factors when you ask for them.

    Args:
        name: how messages and reports call it.
        slots: header facts of every update.
        base: the model it was trained on.
        extras: tensors that are no low-rank pair (heads, biases), kept under their own keys.
        config: the config it came with, verbatim; writers carry what they do not set.
        dialect: the file format it came in.
        bare: it came as one file without a config of its own.
        biases: what it adds to the biases of its modules (PEFT's ``lora_bias``).
        metadata: the header of its file, verbatim.
        oddities: sentences about what looked wrong but could be read.
        renamed: its modules are called otherwise than in its files.
        labels: row of its head -> label, as the config.json beside it says; empty where none does.
        model: the config of its model, from beside it or where its base lies; empty where it is not known.
        families: of image or video models that its own model can be of, by the names of `FAMILIES`.
        spelling: how its files call the modules, where a format has several ways.
        full: the forms, by their words, in which it holds updates of full rank.
    """

    name: str
    slots: Mapping[Target, Slot]
    base: BaseModel = BaseModel()
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    provenance: Provenance = Provenance("")
    dialect: str = "peft"
    bare: bool = False
    oddities: tuple[str, ...] = ()
    biases: Mapping[Target, Scaled] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    renamed: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    families: tuple[str, ...] = ()
    spelling: Spelling | None = None
    full: tuple[str, ...] = ()

    @classmethod
    def of(cls, updates: Mapping[str, LowRank], name: str = "adapter") -> Adapter:
        """An adapter from values in memory: module path -> update.

        >>> import numpy as np
        >>> a = Adapter.of({"h.0.q": LowRank(np.ones((3, 1)), np.ones((1, 2)), scale=0.5)})
        >>> a, a[Target("h.0.q")].norm().__round__(6)
        (<Adapter adapter: 1 modules, rank 1>, 1.224745)
        """
        if not isinstance(updates, Mapping) or not all(isinstance(u, LowRank) for u in updates.values()):
            raise UsageError("An adapter is made of {module: LowRank(up, down, scale)}.")
        if endless := next((path for path, u in updates.items() if not isfinite(u.scale)), None):
            raise UsageError(f"The scale of {printable(endless)} is {updates[endless].scale}: give a number.")
        slots = {Target(path): Slot(Held(u.up), Held(u.down), u.scale) for path, u in updates.items()}
        return cls(name, slots)

    def __getitem__(self, target: Target | str) -> LowRank:
        """The update of a module: by its target, or by its name as `str(target)` and reports say it."""
        return self.slots[self._called(target) if isinstance(target, str) else target].read()

    def _called(self, name: str) -> Target:
        found = next((target for target in self.slots if str(target) == name), None)
        if found is None:
            names = [str(target) for target in self.slots]
            ends = [each for each in names if each.endswith(f".{name}")]
            near = ends or alike(name, names)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise KeyError(f"{self.name} has no module {name!r}.{hint}")
        return found

    def __contains__(self, target: object) -> bool:
        if isinstance(target, str):
            return any(str(each) == target for each in self.slots)
        return target in self.slots

    def __iter__(self) -> Iterator[Target]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)

    def __eq__(self, other: object) -> bool:
        return self is other  # a mapping's own comparison would read every tensor of both; see `diff`

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<Adapter {printable(self.name)}: {len(self)} modules, rank {self.rank}>"

    def _repr_html_(self) -> str:
        facts = {
            "adapter": self.name,
            "format": self.dialect,
            "base model": self.base.name or "not named",
            "modules": len(self),
            "rank": self.rank,
            **({"beside the pairs": ", ".join(list(self.extras)[:8])} if self.extras else {}),
            **({"odd": " ".join(self.oddities)} if self.oddities else {}),
        }
        return facts_html(facts)

    @property
    def rank(self) -> int:
        """The largest rank over its modules; 0 if it has none."""
        return max((slot.rank for slot in self.slots.values()), default=0)

    @property
    def full_rank(self) -> bool:
        """Whether a form of it gave a module an update of full rank."""
        return bool(self.full) and any(slot.rank == min(slot.shape) for slot in self.slots.values())

    @property
    def dtype(self) -> str:
        """The type that holds all its factors (safetensors name)."""
        names = {t.dtype for slot in self.slots.values() for t in (slot.up, slot.down)}
        if not names:
            raise SourceError(f"{printable(self.name)} holds no low-rank pair.")
        return dtypes.widest(names)
