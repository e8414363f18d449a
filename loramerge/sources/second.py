"""Unknown modules that may be one weight under two names, because two sources call it differently.

Different names of one known model are different modules. Other names are judged by their task in a layer and
by their shape. If two have the same task, shape and place, and no source has both, they are one weight.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.late import late
from loramerge.errors import IncompatibleError, printable, say
from loramerge.formats.models.layers import known
from loramerge.formats.models.stems import layered, parted, place, unnumbered

Shape = tuple[int, int]
_TASKS = {  # what a module does in a layer -> how the last part of its name looks, of whatever model
    "query": r"(to_|add_)?q(_proj|_lin|_linear|_attn|uery(_proj|_layer)?)?|w_?q|query_states",
    "key": r"(to_|add_)?k(_proj|_lin|_linear|ey(_proj|_layer)?)?|w_?k",
    "value": r"(to_|add_)?v(_proj|_lin|_linear|alue(_proj|_layer)?)?|w_?v",
    "output": r"(to_)?o(ut)?(_proj|_lin|_linear|utput)?|w_?o|dense|c_proj|proj",
    "gate": r"gate(_proj|_linear)?|w1|wi_0|linear_gate",
    "up": r"up(_proj|_linear)?|w3|fc1|fc_in|lin1|c_fc|wi(_1)?|dense_h_to_4h|linear_?1|fc_up",
    "down": r"down(_proj|_linear)?|w2|fc2|fc_out|lin2|c_proj|wo|dense_4h_to_h|linear_?2|fc_down",
}
_FUSED = late(r".*(qkv|q_k_v|query_key_value|in_proj|pack|c_attn|kqv).*", re.IGNORECASE)


def check(adapters: Sequence[Adapter]) -> None:
    """Raises IncompatibleError: one weight seems to have two names in the merge."""
    every = [_rests(adapter) for adapter in adapters]
    for where in {where for own in every for where in own}:
        _check(adapters, [own[where] for own in every if where in own])


def _check(adapters: Sequence[Adapter], every: Sequence[Mapping[str, Shape]]) -> None:
    """Of one list of layers."""
    kinds = list({frozenset(own.items()): own for own in every}.values())  # thousands may be alike
    both = {frozenset(pair) for own in every for pair in combinations(own, 2)} if len(kinds) > 1 else set()
    for first, other in combinations(kinds, 2):
        if known({*first, *other}):
            continue
        for one, two in _seconds(first, other):
            if frozenset((one, two)) not in both:
                raise _twice(adapters, one, two)


def _rests(adapter: Adapter) -> Mapping[object, dict[str, Shape]]:
    """List of layers -> name in a layer, without numbers -> shape."""
    found: dict[object, dict[str, Shape]] = defaultdict(dict)
    for target, slot in adapter.slots.items():
        if target.kind == "linear" and target.component == "model" and layered(target.path):
            own = found[place(target.path)]
            own.setdefault(unnumbered(parted(target.path)[1]), slot.shape)
    return found


def _seconds(first: Mapping[str, Shape], other: Mapping[str, Shape]) -> Iterator[tuple[str, str]]:
    """(name of the first, name of the other) that may be one weight."""
    ours, theirs = (sorted(own.keys() - more.keys()) for own, more in ((first, other), (other, first)))
    for one in ours:
        for two in theirs:
            if first[one] == other[two] and _alike(one, two):
                yield one, two
    yield from _whole(ours, first, theirs, other)
    yield from ((two, one) for one, two in _whole(theirs, other, ours, first))


def _alike(one: str, two: str) -> bool:
    (above, last), (over, end) = (name.rpartition(".")[::2] for name in (one, two))
    if last == end:  # they differ in what stands before: is something left out?
        return _within(above.split("."), over.split(".")) or _within(over.split("."), above.split("."))
    tasks = [task for task in _TASKS.values() if _fits(task, last) and _fits(task, end)]
    return bool(tasks) and _part(above) == _part(over)


def _fits(task: str, name: str) -> bool:
    return re.fullmatch(task, name, re.IGNORECASE) is not None


def _within(few: list[str], many: list[str]) -> bool:
    """Whether these parts stand in others in their order."""
    left = iter(many)
    return all(part in left for part in few)


def _part(above: str) -> str:
    """Which part of a layer: attention to itself, to something else, or neither."""
    words = above.lower().rpartition(".")[2]
    if "attn" not in words and "attention" not in words:
        return "feed-forward"
    return "cross" if re.search(r"cross|enc|2", words) else "self"


def _whole(
    ours: Sequence[str], first: Mapping[str, Shape], theirs: Sequence[str], other: Mapping[str, Shape]
) -> Iterator[tuple[str, str]]:
    """A module that looks fused, and one of its parts in the same place."""
    parts: dict[str, list[str]] = defaultdict(list)
    for name in theirs:
        if any(_fits(_TASKS[task], name.rpartition(".")[2]) for task in ("query", "key", "value")):
            parts[_part(name.rpartition(".")[0])].append(name)
    for name in ours:
        above, _, last = name.rpartition(".")
        for part in parts.get(_part(above), ()) if _FUSED.fullmatch(last) else ():
            if first[name][1] == other[part][1] and first[name][0] > other[part][0]:
                yield name, part


def _twice(adapters: Sequence[Adapter], one: str, two: str) -> IncompatibleError:
    names = [f"{_holder(adapters, rest)} has {printable(rest)}" for rest in (one, two)]
    return IncompatibleError(
        f"{' where '.join(names)}, and no model with both is known here: this may be one weight under two "
        f"names, of which a program loads only one. If it is, say so with {say('rename', {'OLD': 'NEW'})}; "
        f"if they are two modules, add {say('allow_disjoint', True)}."
    )


def _holder(adapters: Sequence[Adapter], rest: str) -> str:
    """The first source that has a module of this name."""
    return printable(next(a.name for a in adapters if any(rest in own for own in _rests(a).values())))
