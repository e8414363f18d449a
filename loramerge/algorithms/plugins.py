"""Methods of other packages: an entry point in the group ``loramerge.methods``, loaded only when named.

[project.entry-points."loramerge.methods"]
mine = "my_package.merging:Mine"
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from loramerge.algorithms.method import Method
from loramerge.errors import UsageError, printable

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "loramerge.methods"


@cache
def installed() -> dict[str, EntryPoint]:
    """Name -> entry point of every method that some package brings, in order of names; none is loaded."""
    from importlib.metadata import entry_points  # a merge by a method of ours does not need it

    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value))}


def package_of(point: EntryPoint) -> str:
    """The distribution that an entry point is from."""
    return point.dist.name if point.dist is not None else point.value.partition(".")[0]


def loaded(name: str) -> type[Method] | None:
    """The method of that name from another package; None if no package brings it.

    Raises:
        UsageError: it cannot be loaded, or is no method.
    """
    point = installed().get(name)
    if point is None:
        return None
    where = f"The method {printable(name)} of the package {printable(package_of(point))}"
    try:
        found: Any = point.load()
    except Exception as error:  # whatever another package may raise while it is imported
        raise UsageError(f"{where} cannot be loaded: {type(error).__name__}: {printable(error)}.") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UsageError(
            f"{where} is not a loramerge.Method: {printable(point.value)} is a {type(found).__name__}."
        )
    return found


def entry_of(method: type[Method]) -> EntryPoint | None:
    """The entry point by which a method can be named, if its package has one."""
    value = f"{method.__module__}:{method.__qualname__}"
    return next((point for point in installed().values() if point.value.replace(" ", "") == value), None)
