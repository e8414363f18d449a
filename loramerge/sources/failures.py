"""Sources that cannot be read, told of in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from loramerge.errors import IncompatibleError, SourceError, printable
from loramerge.formats.routers import RoutedError
from loramerge.hub.escape import shell

MOST = 10  # broken sources that are told of one by one
Broken = SourceError | IncompatibleError
BROKEN = (SourceError, IncompatibleError)


class OneFrame(IncompatibleError):
    """All sources are files of FlyLoRA, which may share one frozen frame: one FlyLoRA can be made of them."""


def of_all(broken: Sequence[Broken], total: int) -> Broken:
    """One error that names all sources that cannot be read."""
    fly = [each.name for each in broken if isinstance(each, RoutedError) and each.system == "flylora"]
    if len(fly) == total > 1:
        return OneFrame(_of_one_frame(fly))
    return broken[0] if len(broken) == 1 else type(broken[0])(_told_of(broken, total))


def _of_one_frame(names: Sequence[str]) -> str:
    """What makes one of several files of FlyLoRA."""
    shown = printable(", ".join(names))
    words = " ".join(map(shell, names)) if len(names) <= MOST else "SOURCE..."
    return (
        f"{shown} are of FlyLoRA: a gate weighs their units for each input, so that no plain adapter does "
        f"the same. `loramerge combine {words} --method average --keep-form -o merged` makes one FlyLoRA of "
        f"those of one seed, exactly; `loramerge route {words} -o bundle` makes a bundle of them."
    )


def _told_of(broken: Sequence[Exception], total: int) -> str:
    shown = " ".join(f"({number}) {error}" for number, error in enumerate(broken[:MOST], 1))
    more = f" And {len(broken) - MOST} more." if len(broken) > MOST else ""
    return f"{len(broken)} of the {total} sources cannot be merged. {shown}{more}"
