"""Every field of a table with every wrong value, and what may come of an input."""

from __future__ import annotations

import copy
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from loramerge.errors import LoramergeError

WRONG: list[Any] = [
    None,
    True,
    0,
    -1,
    5,
    10**19,
    10**400,
    0.5,
    1e308,
    -1e308,
    5e-324,
    float("nan"),
    "",
    "x",
    "nan",
    "../x",
    "/",
    "\ud800",
    "a" * 300,
    "a\tb",
    "\x1b[31m",
    [],
    [1],
    [[]],
    ["x"],
    [{}],
    {},
    {"a": 1},
    {"": None},
    {"x": {"y": []}},
]
FEW = [None, True, -1, 10**400, float("nan"), "x", "a" * 300, [[]], {"a": 1}]
TAGS = [
    "!!bool x",
    "!!int x",
    "!!float x",
    "!!binary x",
    "!!timestamp x",
    "2001-01-01",
    "!!set {a}",
    "!!omap [a: 1]",
    "1:30:00",
    "!!python/object:os.system x",
    "? [a]\n: b",
    "<<: {a: 1}",
    "!!pairs [a: 1]",
    "*x",
    "&x 1",
    "!!str [1]",
    "!!map 5",
    "!!seq x",
    "\t",
    '"\\U00110000"',
    '"\\UFFFFFFFF"',
]


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every field of a table, itself first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from paths(each, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The table with another value in one place."""
    if not path:
        return new
    made = copy.deepcopy(value)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return made


class Outcomes:
    """What came of many inputs: fine, a sentence, or a bug of ours."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.bugs: dict[str, str] = {}

    def of(self, act: Callable[[], object], told: object) -> None:
        """Act, and class what comes of it; `told` shows the input."""
        try:
            act()
            self.count["fine"] += 1
        except LoramergeError as error:
            self.count["refused"] += 1
            if not str(error).isprintable() or len(str(error)) > 2000:
                self.bugs.setdefault("a sentence that is none", f"{told!r:.200}: {error!r:.200}")
        except Exception as error:
            self.count["bug"] += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.bugs.setdefault(
                f"{type(error).__name__} in {where.filename}:{where.lineno}", f"{told!r:.200}: {error!s:.200}"
            )

    def check(self) -> None:
        assert not self.bugs, self.bugs
        assert self.count["refused"], "nothing was wrong with any"
