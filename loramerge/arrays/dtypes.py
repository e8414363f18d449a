"""The float types a factor may be stored in, by the names of safetensors and of users."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from loramerge.arrays.backend import Array, namespace
from loramerge.errors import UsageError

_OWN: dict[str, np.dtype[Any]] = {
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}


class _Floats(Mapping[str, np.dtype]):
    """NumPy's types by name; bfloat16 comes from a package that is loaded where it is met."""

    def __getitem__(self, name: str) -> np.dtype:
        if name != "BF16":
            return _OWN[name]
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(("BF16", *_OWN))

    def __contains__(self, name: object) -> bool:
        return name == "BF16" or name in _OWN

    def __len__(self) -> int:
        return 1 + len(_OWN)


FLOATS = _Floats()
WORDS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
WORDS |= {"bf16": "BF16", "fp16": "F16", "fp32": "F32", "fp64": "F64"}


def parse(word: str) -> str:
    """The safetensors name of a float type as users write it.

    Raises:
        UsageError: it is none of them.

    >>> parse("bfloat16"), parse("F32")
    ('BF16', 'F32')
    """
    name = WORDS.get(word.lower(), word.upper())
    if name not in FLOATS:
        raise UsageError(f"dtype {word!r} is not one of {', '.join(list(WORDS)[:4])}.")
    return name


def word(name: str) -> str:
    """The user's word for a safetensors name.

    >>> word("BF16")
    'bfloat16'
    """
    return next((w for w, n in WORDS.items() if n == name), name)


def name_of(dtype: np.dtype) -> str:
    """The safetensors name of a NumPy float type.

    >>> name_of(np.dtype("float16"))
    'F16'
    """
    own = next((name for name, known in _OWN.items() if known == dtype), None)
    return own or ("BF16" if FLOATS["BF16"] == dtype else str(dtype))


def widest(names: Iterable[str]) -> str:
    """The type that holds all of them; bfloat16 and float16 hold different values, so both need float32.

    >>> widest(["BF16", "BF16"]), widest(["BF16", "F16"]), widest(["F16", "F64"])
    ('BF16', 'F32', 'F64')
    """
    found = set(names)
    if len(found) == 1:
        return found.pop()
    return "F64" if "F64" in found else "F32"


def epsilon(name: str) -> float:
    """Spacing of the type at 1: the relative rounding error is at most half of it."""
    return float(_limits(name).eps)


def largest(name: str) -> float:
    """The largest finite value of the type."""
    return float(_limits(name).max)


def _limits(name: str) -> Any:
    if name in _OWN:
        return np.finfo(_OWN[name])
    import ml_dtypes

    return ml_dtypes.finfo(FLOATS[name])  # type: ignore[no-untyped-call]


def wide(factor: Array) -> Array:
    """The same values in float64, where every product is taken."""
    with np.errstate(invalid="ignore"):  # a signalling NaN would warn; whoever needs numbers checks for NaN
        return namespace(factor).asarray(factor, dtype=np.float64)
