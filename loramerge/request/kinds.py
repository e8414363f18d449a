"""Kinds of values that a request may hold: what fits, and how the command line names it.

Every kind has one verb: ``fit(value)`` gives the value as it is kept, or raises `Unfit`. Python, the command
line, recipes and records all ask it, so that a wrong value gets the same sentence everywhere.
"""

from __future__ import annotations

import inspect
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loramerge.adapters.limits import WHOLE, sized
from loramerge.errors import SourceError, printable
from loramerge.request.progress import Bar, Tell

NAMES = 1 << 20  # bytes of a file of names
LARGEST = 1e300  # beyond it squares of numbers overflow float64


class Unfit(ValueError):
    """Why a value does not fit, as the sentence goes on after the value: ``is not a size such as 20MB``."""


class Kind(ABC):
    """What values a field takes; `metavar` is their name in help.

    The shell offers files for a path, and `offers`, words that are values.

    Kinds are no dataclasses, as every command imports them, and a dataclass takes a millisecond to make.
    """

    is_path = False
    offers: tuple[str, ...] = ()

    def __init__(self, *, metavar: str | None = None) -> None:
        self.metavar = metavar

    @abstractmethod
    def fit(self, value: Any) -> Any:
        """The value as it is kept. Raises Unfit."""


class Flag(Kind):
    """True or false."""

    def fit(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise Unfit("must be True or False")
        return value


class Choice(Kind):
    """One of a few words; `also` are spellings that are understood but not offered."""

    def __init__(
        self,
        *,
        words: Callable[[], Iterable[str]],
        also: Callable[[], Iterable[str]] = tuple,
        metavar: str | None = None,
    ) -> None:
        super().__init__(metavar=metavar)
        self.words, self.also = words, also

    def fit(self, value: Any) -> str:
        if not isinstance(value, str) or (value not in self.words() and value not in self.also()):
            raise Unfit(f"is not one of {', '.join(self.words())}")
        return value


class Whole(Kind):
    """A whole number from 1 on."""

    def fit(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise Unfit("must be a whole number from 1 on")
        if value > WHOLE:
            raise Unfit(f"is above {WHOLE:g}, the largest whole number here")
        return value


class Number(Kind):
    """A finite number from 0 on, and at most `high`."""

    def __init__(self, *, high: float | None = None, metavar: str | None = None) -> None:
        super().__init__(metavar=metavar)
        self.high = high

    def fit(self, value: Any) -> float:
        found = number(value, low=0)
        if self.high is not None and found > self.high:
            raise Unfit(f"must be a number from 0 to {self.high:g}")
        return found


def factor(value: Any) -> float:
    """A number that something is multiplied by. Raises Unfit."""
    found = number(value, -math.inf, math.inf)
    if wrong := sized(found):
        raise Unfit(wrong)
    return found


def number(value: Any, low: float = -LARGEST, high: float = LARGEST) -> float:
    """A finite number in float64. Raises Unfit."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise Unfit("is not a finite number")
    try:
        found = float(value)
    except (OverflowError, TypeError, ValueError):
        raise Unfit("is not a finite number") from None
    if not math.isfinite(found):
        raise Unfit("is not a finite number")
    if abs(found) > high:
        raise Unfit(f"must be at most {high:g} in size")
    if found < low:
        raise Unfit(f"must be a number from {low:g} on")
    return found


class Text(Kind):
    """Words of the user; a path counts where `path` says so."""

    def __init__(self, *, path: bool = False, metavar: str | None = None) -> None:
        super().__init__(metavar=metavar)
        self.path = self.is_path = path

    def fit(self, value: Any) -> str:
        if self.path and isinstance(value, Path):
            value = str(value)
        if not isinstance(value, str):
            raise Unfit("must be text" + (" or a path" if self.path else ""))
        if not value:
            raise Unfit("is empty")
        return value


class Device(Kind):
    """A processor by its name."""

    offers = ("auto", "cpu", "cuda")

    def fit(self, value: Any) -> str:
        if not isinstance(value, str) or not (value in self.offers or re.fullmatch(r"cuda:\d{1,3}", value)):
            raise Unfit("is not one of auto, cpu, cuda, cuda:0, cuda:1 …")
        return value


class Place(Kind):
    """Where something is written."""

    def fit(self, value: Any) -> Path:
        if not isinstance(value, str | Path) or not str(value):
            raise Unfit("is not a path")
        return Path(value)


class Size(Kind):
    """Bytes: a number or a text such as ``20MB``, kept as it was given because a recipe shows it so."""

    def fit(self, value: Any) -> float | str:
        in_bytes(value)
        return value if isinstance(value, str) else float(value)


def in_bytes(size: Any) -> float:
    """Bytes, from a number or a text such as ``20MB``. Raises Unfit.

    >>> in_bytes("20MB")
    20000000.0
    """
    if isinstance(size, int) and abs(size) > WHOLE:
        raise Unfit("is not a size such as 500MB or 1GB")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]?)B?", str(size), re.IGNORECASE | re.ASCII)
    if match is None or isinstance(size, bool) or not 0 < float(match[1]) < LARGEST:
        raise Unfit("is not a size such as 500MB or 1GB")
    return float(match[1]) * 1000.0 ** " kmg".index(match[2].lower() or " ")


def size(count: float) -> str:
    """Bytes for people.

    >>> size(3253104)
    '3.3 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


class Strength(Kind):
    """A finite number, or the name of a policy; `former` policies are understood, but offered to nobody."""

    def __init__(
        self, *, policies: tuple[str, ...], former: tuple[str, ...] = (), metavar: str | None = None
    ) -> None:
        super().__init__(metavar=metavar)
        self.policies = self.offers = policies
        self.former = former

    def fit(self, value: Any) -> float | str:
        if isinstance(value, str):
            if value in (*self.policies, *self.former):
                return value
            value = _float(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
            raise Unfit(f"is neither a finite number nor one of {', '.join(self.policies)}")
        return factor(value)


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


class Alphas(Kind):
    """A training alpha for all sources, or {source: alpha}; ``"rank"`` is scale 1, ``"rslora:16"`` 16/√r."""

    offers = ("rank", "rslora:")

    def fit(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return _alpha(value)
        return {_named(source): _alpha(each) for source, each in value.items()}


def _alpha(value: Any) -> float | str:
    from loramerge.formats.peft.number import NO_ALPHA, fitting

    if (alpha := fitting(value)) is None:
        raise Unfit(NO_ALPHA)
    return alpha


class Pairs(Kind):
    """{source: text or path}; where `file` says so, a path of a file that holds such a table."""

    def __init__(self, *, file: bool = False, metavar: str | None = None) -> None:
        super().__init__(metavar=metavar)
        self.path = file

    def fit(self, value: Any) -> Any:
        if self.path and isinstance(value, str | Path) and str(value):
            return value
        if not isinstance(value, Mapping):
            raise Unfit("is not a table of source and text" + (" or a file of one" if self.path else ""))
        return {_named(source): _texts(source, each) for source, each in value.items()}


def _named(source: Any) -> str:
    if not isinstance(source, str | Path):
        raise Unfit(f"names the source {printable(repr(source), 60)}, which is not text")
    return str(source)


def _texts(source: Any, value: Any) -> Any:
    if not isinstance(value, str | Path):
        raise Unfit(f"has {printable(repr(value), 60)} for {printable(source, 60)}, which is not text")
    return value


class Many(Kind):
    """A tuple of things that `each` makes fit."""

    def __init__(self, *, each: Callable[[Any], Any], of: str, metavar: str | None = None) -> None:
        super().__init__(metavar=metavar)
        self.each, self.of = each, of

    def fit(self, value: Any) -> tuple[Any, ...]:
        if isinstance(value, str | Mapping) or not hasattr(value, "__iter__"):
            raise Unfit(f"must be a list of {self.of}")
        return tuple(self.each(item) for item in value)


class Progress(Kind):
    """True for a bar, False for none, or a function of (stage, done, total)."""

    def fit(self, value: Any) -> Tell | None:
        if isinstance(value, bool):
            return Bar() if value else None
        try:
            inspect.signature(value).bind("merging", 0, 1)
        except TypeError:
            raise Unfit("is neither True, False nor a function of (stage, done, total)") from None
        except ValueError:  # some built-in functions do not say what they take
            pass
        told: Tell = value
        return told


class Renames(Kind):
    """{old: new} beginnings of names; a file of them, or several of either, are read into one table.

    A file is a JSON object, or has an old and a new name on each line.
    """

    is_path = True

    def fit(self, value: Any) -> dict[str, str]:
        if isinstance(value, str | Path):
            return _renaming(str(value))
        if isinstance(value, Mapping):
            return {_word(old): _word(new) for old, new in value.items()}
        if not isinstance(value, Sequence):
            raise Unfit("is not a table of old and new names or a file of one")
        return {old: new for each in value for old, new in self.fit(each).items()}


def _renaming(text: str) -> dict[str, str]:
    """`OLD=NEW`, or what a file says."""
    old, equals, new = text.partition("=")
    if equals:
        return {old: new}
    from loramerge.adapters.original import read_text  # help reads no file

    try:
        raw = read_text(Path(text), text, NAMES)
        said = raw.decode("utf-8")
    except (SourceError, ValueError) as error:
        raise Unfit(f"is neither OLD=NEW nor a file that can be read ({error})") from None
    if len(raw) > NAMES:
        raise Unfit(f"is a file of more than {NAMES >> 20} MB, which is no table of names")
    if said.lstrip().startswith("{"):
        return Renames().fit(_object(said))
    lines = [line.partition("#")[0].replace("=", " ", 1).split() for line in said.splitlines()]
    if odd := [line for line in lines if line and len(line) != 2]:
        raise Unfit(f"has a line that is not an old and a new name: {printable(' '.join(odd[0]), 60)}")
    return {line[0]: line[1] for line in lines if line}


def _object(text: str) -> Any:
    import json  # help reads none

    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unfit(f"is not a JSON object ({error})") from None


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise Unfit(f"has {printable(repr(value), 60)}, which is not a name")
    return value
