"""Which sources share modules; what is to be said of those that share none stands in `disjoint`."""

from __future__ import annotations

from collections.abc import Sequence

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, printable, say
from loramerge.formats.models.stems import layered


def check_shared(adapters: Sequence[Adapter], allowed: bool) -> list[str]:
    """Sentences about sources that share no module with the others.

    Raises:
        IncompatibleError: and nothing tells that they are parts of one model.
    """
    if not allowed:
        _check_numbered(adapters)
    groups = _groups(adapters)
    if len(groups) < 2:
        return []
    from loramerge.sources.disjoint import told  # most merges need none of its sentences

    return told(adapters, groups, allowed)


def _check_numbered(adapters: Sequence[Adapter]) -> None:
    """Modules without names are matched by number: that means something between files of one length alone.

    Raises:
        IncompatibleError: two have other numbers.
    """
    seen: dict[str, tuple[Adapter, set[str]]] = {}  # component -> the first that has it, and its numbers
    for adapter in adapters:
        own: dict[str, set[str]] = {}
        for target in adapter:
            if target.path.startswith("numbered."):
                own.setdefault(target.component, set()).add(target.path)
        for component, paths in own.items():
            first, others = seen.setdefault(component, (adapter, paths))
            if paths != others:
                raise IncompatibleError(
                    f"{printable(first.name)} has {len(others)} numbered modules and "
                    f"{printable(adapter.name)} {len(paths)}: one number may mean two modules. If it does "
                    f"not, add {say('allow_disjoint', True)}."
                )


def _groups(adapters: Sequence[Adapter]) -> dict[int, set[Target]]:
    """The first source of each group that shares modules -> all modules of the group."""
    heads = list(range(len(adapters)))  # source -> one before it in its group, or itself
    inside = [{each for each in adapter if layered(each.path)} or set(adapter) for adapter in adapters]
    seen: dict[Target, int] = {}
    for turn, targets in enumerate(inside):
        for target in targets:
            one, other = sorted((_head(heads, turn), _head(heads, seen.setdefault(target, turn))))
            heads[other] = one
    found: dict[int, set[Target]] = {}
    for turn, targets in enumerate(inside):
        if targets:
            found.setdefault(_head(heads, turn), set()).update(targets)
    return found


def _head(heads: list[int], turn: int) -> int:
    """The first source of a group; the way to it is shortened for who asks next."""
    while heads[turn] != turn:
        heads[turn] = heads[heads[turn]]
        turn = heads[turn]
    return turn
