"""What a merge method is: a frozen dataclass whose fields are its options, and a pure function on Grams."""

from __future__ import annotations

import inspect
import math
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from functools import cache, wraps
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np

from loramerge.adapters.arguments import WORDS
from loramerge.adapters.limits import WHOLE, sized
from loramerge.algorithms.memory import factors, stored
from loramerge.arrays.backend import Array
from loramerge.arrays.frames import Frame
from loramerge.arrays.gram import Grams, weigh
from loramerge.arrays.remix import Result
from loramerge.charts.facts import facts_html
from loramerge.errors import UsageError, printable

Default = TypeVar("Default")
Made = TypeVar("Made", bound="Method")
EXACT = 2**53  # up to here a whole number is a float of float64
Then = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Traits:
    """What holds for a method; the laws in the tests and the driver read it.

    Args:
        family: where the `methods` listing puts it.
        weights: ``additive``: N copies at w/N equal one at w. ``consensus``: N copies at w equal one
            at w. ``none``: neither.
        common: what a factor c > 0 of all weights does. ``times``: the merge is c times as large. ``same``:
            nothing, as only ratios count. ``neither``.
        gauge: ``invariant``: only ΔW matters. ``raw``: bound to the factors as stored.
        identity: one adapter at weight 1 comes back as itself.
        homogeneous: all sources times c > 0 give the merge times c.
        exact: without a rank the result is the weighted sum itself.
        sums: only the weighted sum of all units matters, not which source they are of.
        shares: weights are made shares of one, so that an update of zero weakens the others.
        vanishes: it may leave a module at the base although its sources were trained there.
        most: the most sources with a weight other than zero.
        negative: whether weights below zero have a meaning.
        units: ``any`` ranks, ``equal`` ones in all sources, or ``shared``: their lora_A is one and the same.
        given: what the numbers beside the sources are. ``weight``: factors of ΔW. ``similarity``: of a source
            to what is wanted; 0 or less leaves it out.
    """

    family: str
    weights: Literal["additive", "consensus", "none"]
    common: Literal["times", "same", "neither"] = "times"
    gauge: Literal["invariant", "raw"] = "invariant"
    identity: bool = True
    homogeneous: bool = True
    exact: bool = False
    sums: bool = False
    shares: bool = False
    vanishes: bool = False
    most: int | None = None
    negative: bool = True
    units: Literal["any", "equal", "shared"] = "any"
    given: Literal["weight", "similarity"] = "weight"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Interval:
    """The values an option may take; the text is what help and errors show. `endless`: inf too."""

    low: float | None = None
    high: float | None = None
    low_open: bool = False
    endless: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low is None or (value > self.low if self.low_open else value >= self.low)
        return above and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        left = "" if self.low is None else f"{self.low:g}{'<' if self.low_open else '<='}"
        return f"{left}x{'' if self.high is None else f'<={self.high:g}'}"


def option(
    default: Default,
    help: str,
    interval: Interval | None = None,
    choices: Sequence[str] = (),
    *,
    work: bool = False,
) -> Default:
    """A field of a method: the CLI option, the validation message and the listing come from it.

    Args:
        interval: the numbers it may be.   choices: the words, where a type cannot list them.
        work: the time that a merge takes grows with it, so that no file may make it large by itself.
    """
    told = {"help": help, "interval": interval, "choices": choices, "work": work}
    return field(default=default, metadata=told)


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A merge method. Fields are its options; `observe`, `decide` and `remix` are pure.

    A method may need a fact of the whole adapter before it can treat one module (a common rank, later
    a threshold). It then returns it per batch from `observe`, and `decide` gives back a method with
    nothing left open.
    """

    former: ClassVar[Mapping[str, str]] = {}  # a name that an option had -> its name, by `formerly`
    then: ClassVar[Then] = dict  # options of a record -> what they meant when it was written, by `recorded`

    @property
    @abstractmethod
    def traits(self) -> Traits:
        """What holds for this method with these options."""

    def __post_init__(self) -> None:
        check_options(self)

    def _repr_html_(self) -> str:
        options = {each.name: getattr(self, each.name) for each in fields(self)}
        return facts_html({"method": type(self).__name__, **options})

    def at(self, module: str) -> Method:
        """The method for one module, if it is not the same for all."""
        return self

    @property
    def query(self) -> str | None:
        """What the descriptions of the sources are compared with, if that decides their similarities."""
        return None

    def weights(self, weights: Array) -> Array:
        """The weights as the method uses them; the report compares the merge with their sum."""
        return weights

    def weigh(self, grams: Grams, weights: Array) -> Grams:
        """The units of its frame with the weights folded in."""
        return weigh(grams, weights)

    @property
    def frame(self) -> Frame:
        """The units it starts from: as stored, or split evenly between up and down, and more."""
        return "balanced" if self.traits.gauge == "invariant" else "stored"

    @property
    def batched(self) -> bool:
        """Whether it works on whole batches of small matrices, which a GPU can do; else on the host."""
        return True

    @property
    def observes(self) -> bool:
        """Whether a pass over all modules is needed before the first can be merged."""
        return False

    def observe(self, grams: Grams) -> Array:
        """Facts (M, …) of one batch, weights already folded in. Only called if `observes`; `decide` gets them
        on the host."""
        return np.empty(0)

    def decide(self, observed: Sequence[Array], largest: int) -> Self:
        """The method with every open option settled; `largest` is the largest rank of a source."""
        return self

    @abstractmethod
    def size(self, signature: tuple[int, ...]) -> int:
        """The most units a merged module has, from the ranks of its sources."""

    def width(self, signature: tuple[int, ...], shape: tuple[int, int]) -> int:
        """The most units a merged module (out, in) has: more than `size` if the merge leaves the span."""
        return self.size(signature)

    def held(self, shape: tuple[int, int], sources: int) -> int:
        """Bytes that a worker holds for one module (out, in) of so many sources, beside factors and Grams."""
        return 0

    def needs(self, signature: tuple[int, ...], shape: tuple[int, int]) -> int:
        """The most bytes that a worker holds for one module (out, in) at once, with factors of float32 and
        beside what `squares` counts."""
        width, own = self.width(signature, shape), self.held(shape, sum(rank > 0 for rank in signature))
        return max(factors(signature, shape, width), stored(shape, width)) + own

    def squares(self, sources: int) -> int:
        """(R, R) arrays of float64 alive at once while a module with R units of so many sources is merged."""
        return 24

    @abstractmethod
    def remix(self, grams: Grams) -> Result:
        """The merged units of one batch, weights already folded in."""

    @property
    def masks(self) -> bool:
        """Whether the merge comes with masks that give each source its part back."""
        return False

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that everybody who merges with it should read."""
        return ()

    @classmethod
    def description(cls) -> str:
        """The docstring without its example: what it is for, formula, source, limits."""
        return (inspect.getdoc(cls) or "").partition(">>>")[0].rstrip()

    def options(self) -> dict[str, Any]:
        """Field values, for provenance."""
        return {name: getattr(self, name) for name in self.names()}

    @classmethod
    def names(cls) -> list[str]:
        """The options; other fields hold what a method has found out."""
        return [f.name for f in fields(cls) if "found" not in f.metadata]

    @classmethod
    def current(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Options under the names that they have today.

        Raises:
            UsageError: one is given under both names.
        """
        for old, new in cls.former.items():
            if old in given and new in given:
                raise UsageError(f"{old} is the former name of {new}: give one of them.")
        return {cls.former.get(name, name): value for name, value in given.items()}

    @classmethod
    def meant(cls, name: str, value: Any) -> bool:
        """Whether this is the former name of an option, with a word that the option may be."""
        words = (f.metadata.get("choices") for f in fields(cls) if f.name == cls.former.get(name))
        return any(value in own for own in words if own)


def formerly(**names: str) -> Callable[[type[Made]], type[Made]]:
    """Options that had other names, ``@formerly(old="new")``: the old ones are still understood."""

    def renamed(cls: type[Made]) -> type[Made]:
        init = cls.__init__

        @wraps(init)
        def current(self: Made, **given: Any) -> None:
            init(self, **cls.current(given))

        cls.former = names
        cls.__init__ = current  # type: ignore[method-assign, assignment]
        return cls

    return renamed


def recorded(then: Then) -> Callable[[type[Made]], type[Made]]:
    """What a record means that was written before a default changed: ``@recorded(then)`` says it in full."""

    def dated(cls: type[Made]) -> type[Made]:
        cls.then = staticmethod(then)
        return cls

    return dated


def check_options(declared: Any) -> None:
    """Raises UsageError: a field made by `option` has a value that its type or interval does not allow."""
    hints = _hints(declared.__class__)
    for f in fields(declared):
        if "found" not in f.metadata:
            value, hint = getattr(declared, f.name), hints[f.name]
            if type(value) is int and EXACT < abs(value) <= WHOLE and not _fits_whole(hint):
                value = float(value)  # NumPy takes no whole number of more than 64 bits
                object.__setattr__(declared, f.name, value)
            _check(f, value, hint)


@cache
def _hints(declared: type) -> Mapping[str, Any]:
    """Field -> its type: to read them takes as long as a small merge."""
    return typing.get_type_hints(declared)


def choices(of: Field[Any], hint: Any) -> list[str]:
    """The words that an option may be: those of its type, or those it was declared with."""
    kinds = typing.get_args(hint) if _is_union(hint) else (hint,)
    typed = [w for kind in kinds if typing.get_origin(kind) is Literal for w in typing.get_args(kind)]
    return typed or [*of.metadata.get("choices", ())]


def _check(of: Field[Any], value: Any, hint: Any) -> None:
    allowed = typing.get_args(hint) if _is_union(hint) else (hint,)
    if value is None and type(None) in allowed:
        return
    if isinstance(value, int) and abs(value) > WHOLE:
        raise UsageError(f"{of.name} is above {WHOLE:g} in size, the largest whole number here.")
    name, shown, interval = of.name, printable(repr(value), 60), of.metadata.get("interval")
    if words := choices(of, hint):
        if not isinstance(value, str) or value not in words:
            raise UsageError(f"{name}={shown} is not one of {', '.join(map(repr, words))}.")
    elif not _fits(value, allowed):
        kinds = " or ".join(WORDS.get(a, a.__name__) for a in allowed if a is not type(None))
        raise UsageError(f"{name}={shown} must be {kinds}.")
    elif value == "":
        raise UsageError(f"{name} is empty.")
    elif interval is not None and value not in interval:
        raise UsageError(f"{name}={shown} is not in the range {interval}.")
    elif isinstance(value, float) and not _endless(value, interval):
        low, low_open = (None, False) if interval is None else (interval.low, interval.low_open)
        if wrong := sized(value, low, low_open):
            raise UsageError(f"{name}={value!r} {wrong}.")


def _endless(value: float, interval: Interval | None) -> bool:
    return value == math.inf and interval is not None and interval.endless


def _fits_whole(hint: Any) -> bool:
    return int in (typing.get_args(hint) if _is_union(hint) else (hint,))


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _fits(value: Any, allowed: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in allowed
    return isinstance(value, allowed) or (float in allowed and isinstance(value, int))
