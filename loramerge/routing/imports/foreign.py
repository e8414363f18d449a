"""From a file that brings its own gate to a bundle: the same units, the same gate, one record."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.adapters.adapter import BaseModel, Tensor
from loramerge.adapters.base_models import without_folders
from loramerge.adapters.original import Original, open_original
from loramerge.adapters.target import Target
from loramerge.arrays import dtypes, rounding
from loramerge.errors import IncompatibleError, SourceError, printable
from loramerge.formats.raw import Raw, look
from loramerge.formats.routers import system_of
from loramerge.routing.bank import Bank, Layout
from loramerge.routing.bundle import Bundle
from loramerge.routing.gates.gate import Gate, stored_as
from loramerge.routing.imports.names import SYSTEMS
from loramerge.routing.imports.system import Given, Parts, System

WRAPPED = re.compile(r"(?:base_model\.(?:model\.)?)+")  # PEFT's, once or more


@dataclass(frozen=True, eq=False)
class Foreign:
    """A file that brings its own gate.

    Args:
        modules: path -> part -> tensor.   given: what is known beside them.
        rest: how many tensors of the model itself lie in the file.
        hub: of a file of the Hub its repository, path and commit.
    """

    system: System
    raw: Raw
    modules: Mapping[str, Parts]
    given: Given
    extras: Mapping[str, Tensor]
    rest: int
    dtype: str
    hub: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def at(
        cls, path: Path, alpha: float | None = None, allow_pickle: bool = False, name: str | None = None
    ) -> Foreign | None:
        """The file at a place, called `name` if that is given; None if it is of none of the systems."""
        raw = look(path, str(path) if name is None else name, allow_pickle)
        found = system_of(raw.tensors, raw.config)
        return None if found is None else cls.of(SYSTEMS[found.name], raw, alpha)

    @classmethod
    def of(cls, system: System, raw: Raw, alpha: float | None = None) -> Foreign:
        """Its tensors by module. Raises SourceError: a part is missing."""
        modules: dict[str, dict[str, Tensor]] = {}
        shared, extras, rest = {}, {}, 0
        for key, tensor in raw.tensors.items():
            if found := system.pattern.fullmatch(key):
                path = WRAPPED.sub("", found["path"], count=1)
                part = found["part"] or found["bias"]
                modules.setdefault(path, {})[part] = tensor
            elif system.shares(key):
                shared[key] = tensor
            elif system.carries(key):
                extras[key] = tensor
            else:
                rest += 1
        shown = printable(raw.header.name)
        for path, parts in modules.items():
            for part in system.must:
                if part not in parts:
                    raise SourceError(f"{shown} lacks {part} of {printable(path)}: it was badly saved.")
        if not modules:
            raise SourceError(f"{shown} has a gate, but no factors that it weighs.")
        kind = dtypes.widest(t.dtype for parts in modules.values() for t in parts.values())
        given = Given(raw.config, alpha, shared, shown)
        return cls(system, raw, modules, given, extras, rest, kind)

    def bundle(self) -> Bundle:
        """Its units under its gate; nothing but headers is read yet."""
        places = {Target(path): parts for path, parts in sorted(self.modules.items())}
        layouts = {t: self.system.layout(parts, self._at(t)) for t, parts in places.items()}
        first = next(iter(places.values()))
        experts = self.system.experts(first, self.given)
        for target, parts in places.items():
            if self.system.experts(parts, self.given) != experts:
                raise SourceError(f"{self.given.where} has other experts in {printable(target)} than before.")
        gate = self.system.gate(first, self.given).settled(len(experts))
        base = self.raw.config.get("base_model_name_or_path")
        name = without_folders(base) if isinstance(base, str) else None

        def read(target: Target) -> Bank:
            return self._bank(places[target], layouts[target], gate, target)

        extras = {key: dtypes.wide(np.asarray(t.read())).astype(np.float32) for key, t in self.extras.items()}
        notes = [f"{self.rest} tensors that are of the model itself are left behind"] if self.rest else []
        settings = {"task_type": self.raw.config.get("task_type")}
        return Bundle(
            experts, gate, layouts, read, stored_as(gate, self.dtype), BaseModel(name), settings,
            extras=extras, notes=tuple(notes), shared=bool(self.given.shared),
        )  # fmt: skip

    def _at(self, target: Target) -> Given:
        return replace(self.given, where=f"{printable(target)} of {self.given.where}")

    def _bank(self, parts: Parts, layout: Layout, gate: Gate, target: Target) -> Bank:
        stored = self.system.stored(parts, self._at(target))
        if not (np.isfinite(stored.up).all() and np.isfinite(stored.down).all()):
            raise SourceError(f"{self.given.where} has NaN or infinity in {printable(target)}.")
        tensors = {name: np.asarray(tensor, np.float32) for name, tensor in stored.tensors.items()}
        for name, shape in gate.shapes(layout).items():
            if name not in tensors or tensors[name].shape != shape:
                found = tensors[name].shape if name in tensors else "none"
                raise SourceError(
                    f"The gate of {printable(target)} in {self.given.where} has {name} of shape {found}, "
                    f"not {shape}."
                )
        kind = stored_as(gate, self.dtype)
        up, down = rounding.store(stored.up, stored.down, kind, layout.units, str(target))
        return Bank(layout, up, down, tensors)

    def uniform(self) -> float:
        """The weight of each expert where its gate is put away."""
        return self.system.uniform(next(iter(self.modules.values())), self.given)

    def originals(self) -> list[Original]:
        """Its files, to be hashed."""
        names = [self.raw.weights, *(["adapter_config.json"] if self.raw.folder else [])]
        place = self.raw.place if self.raw.folder else self.raw.place.parent
        return [open_original(place / name, name) for name in names]

    def described(self) -> dict[str, Any]:
        """What the record says of it."""
        sha256 = {each.path.name: each.sha256() for each in self.originals()}
        name = Path(self.raw.header.name).name
        return {"name": name, "system": self.system.name, "sha256": sha256, **self.hub}


def averaged(files: Sequence[Foreign]) -> Bundle:
    """Several FlyLoRA files of one seed as one: A and its gate are the same, and the mean of B is exact.

    Raises:
        IncompatibleError: they are of other systems, or their A or their biases differ.
    """
    bundles = [each.bundle() for each in files]
    first = bundles[0]
    if any(each.system.name != "flylora" for each in files):
        raise IncompatibleError(
            "A file that brings its own gate stands alone: two gates of two files cannot both decide. Route "
            "each by itself."
        )
    for each, other in zip(files, bundles, strict=True):
        if other.layouts != first.layouts or other.gate != first.gate:
            raise IncompatibleError(
                f"{each.given.where} has other modules, ranks or top_k than the first file."
            )

    def read(target: Target) -> Bank:
        banks = [each.read(target) for each in bundles]
        for bank, each in zip(banks, files, strict=True):
            _check_same(banks[0], bank, target, each)
        up = np.mean([dtypes.wide(bank.up) for bank in banks], axis=0)
        return replace(banks[0], up=up.astype(banks[0].up.dtype))

    return replace(first, read=read, notes=tuple(note for each in bundles for note in each.notes))


def _check_same(first: Bank, other: Bank, target: Target, file: Foreign) -> None:
    if not np.array_equal(first.down, other.down):
        raise IncompatibleError(
            f"{file.given.where} has another frozen A in {printable(target)} than the first file: they were "
            "made with other seeds, and the mean of B means nothing. Route each by itself, and put the units "
            "side by side, by the method `cat` of their experts."
        )
    if not np.array_equal(first.tensors["bias"], other.tensors["bias"]):
        raise IncompatibleError(
            f"{file.given.where} has other biases of its gate in {printable(target)} than the first file, so "
            "that other units act for the same token."
        )
