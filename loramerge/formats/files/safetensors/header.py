"""The header of a safetensors file: JSON text in, checked entries out. Knows no files.

The checks are those of the `safetensors` library, and a few that it lacks: no key twice (the
library lets the last one win), at most 64 dimensions, no size that NumPy cannot hold.
"""

import json
import math
from typing import Any, NamedTuple, TypeGuard

from loramerge.adapters.limits import NAME, too_long
from loramerge.errors import printable
from loramerge.formats.files.safetensors.dtypes import BITS

MAX_DIMENSIONS = 64  # NumPy holds no more
MAX_VALUES = 3_000_000  # ten for a tensor
MAX_BITS = 2**63


class Malformed(ValueError):
    """What is wrong with a header, as the end of a sentence that begins with the file."""


class Entry(NamedTuple):
    """One tensor as the header declares it; offsets count from the end of the header."""

    start: int
    stop: int
    key: str
    dtype: str
    shape: tuple[int, ...]


def parse(raw: bytes, data_size: int) -> tuple[dict[str, str], list[Entry]]:
    """The metadata and the entries, in the order of their bytes.

    Raises:
        Malformed: anything is wrong, also if the entries do not cover each of the `data_size`
            bytes exactly once.

    >>> parse(b'{"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}', data_size=2)
    ({}, [Entry(start=0, stop=2, key='a', dtype='U8', shape=(2,))])
    """
    header = _json(raw)
    if len(longest := max(header, key=len, default="")) > NAME:
        raise Malformed(too_long(longest))
    metadata = _metadata(header.pop("__metadata__", {}))
    entries = sorted(_entry(key, value) for key, value in header.items())
    _check_cover(entries, data_size)
    return metadata, entries


def _json(raw: bytes) -> dict[str, Any]:
    if sum(map(raw.count, (b",", b"[", b"{", b":"))) > MAX_VALUES:  # each takes far more memory than text
        raise Malformed(f"its header has more than {MAX_VALUES} values")
    try:
        header = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_natural,
            parse_constant=_constant,
        )
    except Malformed:
        raise
    except UnicodeError:
        raise Malformed("its header is not UTF-8") from None
    except RecursionError:
        raise Malformed("its header is nested too deeply") from None
    except ValueError as error:
        raise Malformed(f"its header is not JSON ({printable(error)})") from None
    if not isinstance(header, dict):
        raise Malformed("its header is not a JSON object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise Malformed(f"its header has the key '{printable(key)}' twice")
        _check_text(key, value)
        found[key] = value
    return found


def _check_text(*values: object) -> None:
    # JSON may escape half of a surrogate pair, which no UTF-8 output could show again.
    for value in values:
        if isinstance(value, str) and not value.isascii():
            value.encode("utf-8")


def _natural(digits: str) -> int:
    if digits.startswith("-") or len(digits) > 20:
        raise Malformed(f"its header has the number {printable(digits, 24)}, which is out of range")
    return int(digits)


def _constant(name: str) -> None:
    raise Malformed(f"its header is not JSON ({name} is not a JSON number)")


def _metadata(value: object) -> dict[str, str]:
    if value is None:  # as mlx writes it, and as the library reads it
        return {}
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise Malformed("its __metadata__ does not map text to text")
    return value


def _entry(key: str, value: object) -> Entry:
    if not isinstance(value, dict):
        raise _bad(key, "is not described by a JSON object")
    dtype, shape, offsets = (value.get(field) for field in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _bad(key, f"has the unknown dtype {printable(dtype, 40)}")
    if not _are_naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise _bad(key, f"has no shape of at most {MAX_DIMENSIONS} whole numbers")
    if not _are_naturals(offsets) or len(offsets) != 2:
        raise _bad(key, "has no data_offsets of two whole numbers")
    _check_size(key, dtype, shape, offsets)
    return Entry(offsets[0], offsets[1], key, dtype, tuple(shape))


def _check_size(key: str, dtype: str, shape: list[int], offsets: list[int]) -> None:
    # An empty array with absurd other dimensions is as impossible in NumPy as a full one.
    if math.prod(max(n, 1) for n in shape) * BITS[dtype] >= MAX_BITS:
        raise _bad(key, "has an impossibly large shape")
    bits = math.prod(shape) * BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        raise _bad(key, "has data_offsets that do not fit its shape and dtype")


def _are_naturals(value: object) -> TypeGuard[list[int]]:
    # `type`, because JSON's true is an int to isinstance; _natural has refused the negative ones.
    return isinstance(value, list) and all(type(n) is int for n in value)


def _check_cover(entries: list[Entry], data_size: int) -> None:
    end = 0
    for entry in entries:
        if entry.start != end:
            fault = "overlaps the tensor before it" if entry.start < end else "follows a hole"
            raise _bad(entry.key, fault)
        end = entry.stop
    if end > data_size:
        raise Malformed(f"it is cut short: {end - data_size} bytes of its tensors are missing")
    if end < data_size:
        raise Malformed(f"{data_size - end} bytes follow its last tensor")


def _bad(key: str, fault: str) -> Malformed:
    return Malformed(f"its tensor '{printable(key)}' {fault}")
