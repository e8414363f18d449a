"""The bytes that one module (out, in) takes while it is merged: the parts that methods state theirs by."""

from __future__ import annotations

COPIES = 1.5  # of all factors in float64 while they are read: one side is there as it was stored, too
STORED = 36  # bytes of a merged number: in float64, times its strength, as stored, and what rounding costs

Shape = tuple[int, int]
Signature = tuple[int, ...]


def factors(signature: Signature, shape: Shape, width: int, copies: float = COPIES) -> int:
    """Those of all sources in so many copies, of one source once more, and of a merge of so many units.

    >>> factors((4, 4), (100, 10), 4)
    17600
    """
    return int(8 * (copies * sum(signature) + max(signature) + width) * sum(shape))


def stored(shape: Shape, width: int) -> int:
    """The factors of a merge of so many units while they are stored.

    >>> stored((100, 10), 4)
    15840
    """
    return STORED * width * sum(shape)
