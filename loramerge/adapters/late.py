"""Regular expressions that are compiled when they are first used: most merges use few of them."""

from __future__ import annotations

import re
from typing import Any, cast


def late(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """A pattern that can do what a compiled one can.

    >>> late("a+").sub("b", "caa")
    'cb'
    """
    return cast("re.Pattern[str]", _Late(pattern, flags))


class _Late:
    def __init__(self, pattern: str, flags: int) -> None:
        self._asked = pattern, flags

    def __getattr__(self, name: str) -> Any:
        found = getattr(re.compile(*self._asked), name)  # re keeps the pattern itself
        setattr(self, name, found)
        return found
