"""Dialects in which one model is spelled in several ways: a file keeps its own, others get the usual one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import ClassVar, Self

import numpy as np

from loramerge.adapters.adapter import Adapter, Held, Tensor
from loramerge.adapters.spelling import Spelling
from loramerge.adapters.target import Target
from loramerge.formats.dialects.dialect import Dialect, Scales, Widths
from loramerge.formats.dialects.grain import placed, regrained
from loramerge.formats.dialects.model import PARTS, SAID, VARIANT, Model, model_of, said
from loramerge.formats.dialects.places import located, unnamed
from loramerge.formats.models.families import having, likely
from loramerge.formats.models.family import FIRST

AB, DOWN_UP = (".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")


class Spelled(Dialect):
    """A dialect that is told, before it writes, which model it writes and how a source spells it.

    usual: the naming in which it writes a model that no source of its own spells.
    """

    usual: ClassVar[str] = FIRST
    model: Model | None = None
    own: Spelling = Spelling()
    second = False  # whether all that it writes is for the second model of a pipeline

    def bound(self, adapters: Sequence[Adapter]) -> Self:
        made = copy(self)
        made.model = model_of(map(placed, adapters))
        spelled = (a.spelling for a in adapters if a.dialect == self.name and a.spelling is not None)
        made.spell(next(spelled, Spelling()), adapters)
        return made

    def spell(self, own: Spelling, adapters: Sequence[Adapter]) -> None:
        """Write these in this spelling."""
        self.own, self.keeps_alpha = own, type(self).keeps_alpha or own.ends == DOWN_UP
        self.model = replace(self.model or Model(), namings=own.namings)
        self.second = {t.component for a in adapters for t in a.slots if t.component in PARTS} == {PARTS[1]}
        self.learn(adapters)

    def learn(self, adapters: Sequence[Adapter]) -> None:
        """What else it takes from its sources, while it is bound to them."""

    def adopt(self, adapter: Adapter) -> Adapter:
        if self.model is None:
            return self.bound([adapter]).adopt(adapter)
        near = adapter if adapter.dialect == self.name else located(adapter)
        whole = regrained(near, self.model, self.naming)
        return self._renamed(whole, self._kept if adapter.dialect == self.name else self.home)

    def _kept(self, target: Target) -> Target:
        """Where a module of a source in this format comes to lie."""
        return self.home(target) if self.holds(target) else target

    @property
    def naming(self) -> str:
        """The naming in which it writes its model."""
        known = self.model.families if self.model else ()
        return (self.own.of(known[0].name) if known else self.own.naming) or self.usual

    def holds(self, target: Target) -> bool:
        """Whether a target is a module of its model."""
        return self.model is not None and self.model.holds(target)

    def spells(self, target: Target) -> str | None:
        """What a module of its model is called; None for modules of another."""
        return self.model.name(target, self.naming) if self.model and self.holds(target) else None

    def settled(self, target: Target) -> Target:
        """A module of its model where `read` will find it.

        Raises:
            IncompatibleError: it has no name here.
        """
        if self.spells(target) is None:
            raise unnamed(target, self.words)
        return replace(target, component=PARTS[0])

    def beside(self, widths: Widths, scales: Scales) -> Mapping[str, Tensor]:
        """The alphas, where it has any."""
        if not self.keeps_alpha:
            return {}
        names = self.keys(widths)
        return {
            f"{names(target)[0].removesuffix(DOWN_UP[0])}.alpha": Held(
                np.array(scales.get(target, 1.0) * width, np.float32)
            )
            for target, width in widths.items()
        }

    def told(self, targets: Iterable[Target], kept: Mapping[str, str]) -> dict[str, str]:
        """What the metadata must say beside what is `kept`, for the model to be known by the file alone."""
        model = self.model
        own = [target for target in targets if model and model.holds(target)]
        if model is None or len(model.families) != 1 or not own:
            return {}
        moved = self.second and any(target.component == PARTS[0] for target in own)
        noise = {VARIANT: "low noise"} if moved and "noise" in model.first.variants else {}
        paths = [target.path for target in own]
        alone = likely(having(paths), dict.fromkeys(paths, (0, 0)))
        known = alone == model.families or (said(kept) and model.first.means(said(kept)))
        return noise if known else {SAID[0]: model.first.name, **noise}
