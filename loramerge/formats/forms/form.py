"""What a form is: one way to store the update of a module, and how it becomes a pair of factors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, NamedTuple

from loramerge.adapters.adapter import Tensor
from loramerge.adapters.target import Kind, Target
from loramerge.arrays.backend import Array
from loramerge.errors import SourceError, printable

Parts = Mapping[str, Tensor]  # the tensors of one module by what they are: up, down, hada_w1_a, …
Naming = Literal["peft", "image"]  # who ends the keys: PEFT, or the tools of image models with LyCORIS
Needs = Literal["file", "sizes", "base"]
Spellings = Mapping[str, tuple[str, ...]]  # part -> how keys of it end; messages show the first
LARGEST = 1e30  # of a number in a config: far above any real one


class Layer(NamedTuple):
    """A layer of the base model. Only its header is read until its numbers are asked for.

    Args:
        size: (out, in · Π kernel).   weight: as that matrix.   bias: (out,), if it has one.
        kernel: of a convolution.
    """

    size: tuple[int, int]
    weight: Tensor
    bias: Tensor | None = None
    kernel: tuple[int, ...] = ()


class Base(ABC):
    """The model that adapters were trained on, as far as forms need it. `name` is for messages."""

    name: str

    @abstractmethod
    def layers(self, paths: Collection[str]) -> Mapping[str, Layer]:
        """The linear layers that these modules of an adapter mean; those that it does not have are left out.

        Raises:
            IncompatibleError: its weights are quantised in a way that is not read.
        """

    @abstractmethod
    def weights(self, sizes: Mapping[Target, tuple[int, int]]) -> Mapping[Target, Tensor]:
        """The weights of these modules of a pipeline, as matrices (out, in · Π kernel) of such sizes.

        Raises:
            IncompatibleError: it has no such module, or one of another size; or as `layers`.
        """


class Aid(NamedTuple):
    """What the user gives beside the files of an adapter, for those that are not complete by themselves.

    Args:
        base: the model that it was trained on.
        gate: module -> how much each of its outputs counts for a fixed prompt.
        names: "down" and "up" -> how the keys of these factors end, where nobody knows the names.
        kept: what is made of it keeps its form, so that a gate over its units does no harm.
    """

    base: Base | None = None
    gate: Mapping[str, Array] | None = None
    names: Mapping[str, str] | None = None
    kept: bool = False


NO_AID = Aid()


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Given:
    """What is known of a module beside its tensors.

    Args:
        where: what messages call it.
        config: the settings of its adapter, {} if there are none.
        rank: the r that these settings give it; None if they say none.
        scale: alpha over rank by these settings, for forms that are not linear in it.
        path: its name in the file.   shared: tensors that belong to no one module, by their names.
        layers: what the modules of this file adapt, by their names, where a base model is given that has it.
        base: the name of that model.
    """

    where: str
    config: Mapping[str, Any] = field(default_factory=dict)
    rank: int | None = None
    scale: float = 1.0
    path: str = ""
    shared: Parts = field(default_factory=dict)
    layers: Mapping[str, Layer] = field(default_factory=dict)
    base: str | None = None

    @property
    def layer(self) -> Layer:
        """What the module adapts, in a form that declares its need of it: the table refuses one without."""
        return self.layers[self.path]

    def borrow(self, name: str) -> Tensor:
        """A tensor that modules share.

        Raises:
            SourceError: it is not there.
        """
        if name not in self.shared:
            raise SourceError(f"{name} of {self.where} is missing: the file was cut or badly saved.")
        return self.shared[name]

    def number(self, setting: str, default: float | None = None) -> float:
        """A number that the config says.

        Raises:
            SourceError: it says none, or something else.
        """
        value = self.config.get(setting, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            shown = printable(repr(value), 60)
            raise SourceError(f"{setting} in the config of {self.where} must be a number, not {shown}.")
        return value

    def whole(self, setting: str, default: int | None = None) -> int:
        """The same of a whole number from 0 on."""
        value = self.number(setting, default)
        if not isinstance(value, int) or value < 0:
            shown = printable(repr(value), 60)
            raise SourceError(
                f"{setting} in the config of {self.where} must be a whole number from 0 on, not {shown}."
            )
        return value


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Update:
    """A module's update before its scale.

    Args:
        up: (out, units).   down: (units, in · Π kernel). Larger where several blocks share them.
        rank: what alpha is divided by; None where the form has no alpha.
        kernel: of a convolution, as far as the shapes tell it.
        kind, blocks: as in `Target` and its `Layout`.
        form: the name of the form, which the table adds.
        bias: (out,), what is added to the bias of the module.
        full: nothing of low rank is in it.
    """

    up: Tensor
    down: Tensor
    rank: int | None
    kernel: tuple[int, ...] = ()
    kind: Kind = "linear"
    blocks: int = 1
    form: str = ""
    bias: Tensor | None = None
    full: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class Form:
    """One row of the table of forms.

    Args:
        name: its key in the table.   words: how messages and notes call it.
        formula: ΔW before the scale.   units: the rank that this has at most.
        make: the update, from tensors whose floats and sizes are checked. It reads no number; None where
            nothing was left of the module.
        peft, image: the parts that it owns in each naming, with the ends of their keys. `#` is a number.
        must: the parts without which there is none.   whole: those that hold whole numbers.
        shared: the names of tensors that modules share, with the ends of their keys.
        types: PEFT's types that store it -> the setting that holds their alpha; "" where they have none, and
            the formula is the whole update.
        setting, value: a setting of the config, without which the same parts mean another form; and what it
            must be, if not only true.
        bare: it can be read without a config of its type.
        needs: what makes the update: its file alone, the sizes of the layers, or the base weights.
        linear: groups of parts, or of shared tensors, in which ΔW is linear while all others stay the same.
        neutral: the value of these at which ΔW is 0.
        scaled: alpha over rank multiplies it; else its formula has every number in it.
        full: every update has the rank of the matrix.   conv: its layer may be a convolution.
        told: notes say how many modules have it.   caveat: what they say too.
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
    whole: tuple[str, ...] = ()
    shared: Spellings = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    setting: str = ""
    value: Any = None
    bare: bool = True
    needs: Needs = "file"
    linear: tuple[tuple[str, ...], ...] = ()
    neutral: float = 0.0
    scaled: bool = True
    full: bool = False
    conv: bool = False
    told: bool = True
    caveat: str = ""
    empty: bool = False

    def spellings(self, naming: Naming) -> Spellings:
        """The parts that it owns, with the ends of their keys."""
        return self.peft if naming == "peft" else self.image

    def owns(self, part: str, naming: Naming) -> bool:
        """Whether a part can belong to it."""
        return numberless(part) in self.spellings(naming)

    def fits(self, config: Mapping[str, Any]) -> bool:
        """Whether its setting is there, if it has one."""
        said = config.get(self.setting) if self.setting else True
        return bool(said) if self.value is None else said == self.value

    def call(self, part: str) -> str:
        """The tensor of a part, as messages call it."""
        ends = {**self.image, **self.peft}.get(numberless(part), (part,))
        return ends[0].removesuffix(".weight").replace("#", part.rpartition(".")[2])


class Late:
    """The `make` of a form, whose file is loaded when a module is of that form.

    Args:
        home: ``file.function`` in this folder.
    """

    def __init__(self, home: str) -> None:
        self.home = home

    def __repr__(self) -> str:
        return f"Late({self.home!r})"

    def __call__(self, parts: Parts, given: Given) -> Update | None:
        file, _, name = self.home.partition(".")
        make: Callable[[Parts, Given], Update | None] = getattr(import_module(f"{__package__}.{file}"), name)
        return make(parts, given)


def numberless(part: str) -> str:
    """A part without its number.

    >>> numberless("down.3"), numberless("hada_w1_a")
    ('down.#', 'hada_w1_a')
    """
    name, dot, number = part.rpartition(".")
    return f"{name}.#" if dot and number.isdecimal() else part
