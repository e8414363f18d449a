"""What a form is: one way to store the update of a module, and how it becomes a pair of factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from loramerge.adapters.adapter import Tensor
from loramerge.adapters.target import Kind

Parts = Mapping[str, Tensor]  # the tensors of one module by what they are: up, down, hada_w1_a, …
Naming = Literal["peft", "image"]  # who ends the keys: PEFT, or the tools of image models with LyCORIS
Needs = Literal["file", "sizes", "base"]
Spellings = Mapping[str, tuple[str, ...]]  # part -> how keys of it end; messages show the first


@dataclass(frozen=True, eq=False, slots=True)
class Given:
    """What is known of a module beside its tensors.

    Args:
        where: what messages call it.
        config: the settings of its adapter, {} if there are none.
        rank: the r that these settings give it; None if they say none.
    """

    where: str
    config: Mapping[str, Any] = field(default_factory=dict)
    rank: int | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Update:
    """A module's update before its scale.

    Args:
        up: (out, units).   down: (units, in · Π kernel). Larger where several blocks share them.
        rank: what alpha is divided by; None where the form has no alpha.
        kernel: of a convolution, as far as the shapes tell it.
        kind, blocks: as in `Target` and its `Layout`.
        form: the name of the form, which the table adds.
    """

    up: Tensor
    down: Tensor
    rank: int | None
    kernel: tuple[int, ...] = ()
    kind: Kind = "linear"
    blocks: int = 1
    form: str = ""


@dataclass(frozen=True, eq=False)
class Form:
    """One row of the table of forms.

    Args:
        name: its key in the table.   words: how messages and notes call it.
        formula: ΔW before the scale.   units: the rank that this has at most.
        make: the update, from tensors whose floats and sizes are checked. It reads no number; None where
            nothing was left of the module.
        peft, image: the parts that it owns in each naming, with the ends of their keys. `#` is a number.
        must: the parts without which there is none.
        types: PEFT's types that store it -> the setting that holds their alpha.
        setting: a setting of the config, without which the same parts mean another form.
        bare: it can be read without a config of its type.
        needs: what makes the update: its file alone, the sizes of the layers, or the base weights.
        told: notes say how many modules have it.
        empty: a factor without a row is no mistake.
    """

    name: str
    words: str
    formula: str
    units: str
    make: Callable[[Parts, Given], Update | None]
    peft: Spellings = field(default_factory=dict)
    image: Spellings = field(default_factory=dict)
    must: tuple[str, ...] = ()
    types: Mapping[str, str] = field(default_factory=dict)
    setting: str = ""
    bare: bool = True
    needs: Needs = "file"
    told: bool = True
    empty: bool = False

    def spellings(self, naming: Naming) -> Spellings:
        """The parts that it owns, with the ends of their keys."""
        return self.peft if naming == "peft" else self.image

    def owns(self, part: str, naming: Naming) -> bool:
        """Whether a part can belong to it."""
        return numberless(part) in self.spellings(naming)

    def call(self, part: str) -> str:
        """The tensor of a part, as messages call it."""
        ends = {**self.image, **self.peft}.get(numberless(part), (part,))
        return ends[0].removesuffix(".weight").replace("#", part.rpartition(".")[2])


def numberless(part: str) -> str:
    """A part without its number.

    >>> numberless("down.3"), numberless("hada_w1_a")
    ('down.#', 'hada_w1_a')
    """
    name, dot, number = part.rpartition(".")
    return f"{name}.#" if dot and number.isdecimal() else part
