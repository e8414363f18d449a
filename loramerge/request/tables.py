"""The words of other rooms' tables that a request may hold; a table is loaded when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator


def formats() -> Iterator[str]:
    """Formats that are written, and programs whose own is; who asks for a format loads no programs."""
    from loramerge.formats.dialects import FORMATS

    yield from FORMATS
    from loramerge.formats.tools import TOOLS

    yield from TOOLS


def spellings() -> Iterator[str]:
    """How files of image models spell their modules: a merge can be written in each of these ways."""
    from loramerge.formats.tools import SPELLINGS

    yield from SPELLINGS


def profiles() -> tuple[str, ...]:
    """Ways to write ranks."""
    from loramerge.formats.peft.profiles import PROFILES

    return PROFILES


def policies() -> tuple[str, ...]:
    """What becomes of tensors that are no low-rank pair."""
    from loramerge.formats.extras import POLICIES

    return POLICIES


def consumers() -> tuple[str, ...]:
    """Programs that load adapters."""
    from loramerge.consumers import CONSUMERS

    return tuple(CONSUMERS)
