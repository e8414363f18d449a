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
_PARTS = {"query", "key", "value", "gate", "up"}  # tasks that models put together
_FUSED = late(r".*(qkv|q_k_v|query_key_value|in_proj|pack|c_attn|kqv).*", re.IGNORECASE)


def check(adapters: Sequence[Adapter]) -> None:
    """Raises IncompatibleError: one weight seems to have two names in the merge."""
    _check_inserted(adapters)
    every = [_rests(adapter) for adapter in adapters]
    for where in {where for own in every for where in own}:
        _check(adapters, [own[where] for own in every if where in own])


def _check_inserted(adapters: Sequence[Adapter]) -> None:
    """Refuse a wrapper around a single layer, which leaves the names of the others as they are.

    Raises:
        IncompatibleError: a module is another's with one more name in its layer, and no source has both.
    """
    if len(adapters) < 2:
        return
    found = [{t.path: slot.shape for t, slot in a.slots.items() if t.component == "model"} for a in adapters]
    every: dict[str, Shape] = {}
    for own in found:
        every.update(own)
    if all(len(own) == len(every) for own in found):
        return
    for path, shape in every.items():
        for short in _shorter(path):
            if every.get(short) != shape or any(path in own and short in own for own in found):
                continue
            if not known({unnumbered(parted(each)[1]) for each in (path, short)}):
                raise _twice(adapters, path, short)


def _shorter(path: str) -> Iterator[str]:
    """A path without one of the names in its layer, or two that follow each other.

    >>> list(_shorter("layers.0.inner.q_proj"))
    ['layers.0.q_proj', 'layers.0', 'layers.0.inner']
    """
    parts = path.split(".")
    first = next((turn for turn, part in enumerate(parts) if part.isdigit()), len(parts))
    for turn in range(first + 1, len(parts)):
        for end in range(turn + 1, min(turn + 2, len(parts)) + 1):
            if not any(part.isdigit() for part in parts[turn:end]):
                yield ".".join(parts[:turn] + parts[end:])


def _check(adapters: Sequence[Adapter], every: Sequence[Mapping[str, Shape]]) -> None:
    """The same within one list of layers."""
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
    """Whether two modules of one shape may have one task, in one place of a layer."""
    (above, last), (over, end) = (name.rpartition(".")[::2] for name in (one, two))
    parts = above.split("."), over.split(".")
    if last == end and (_within(*parts) or _within(*parts[::-1])):  # is something left out?
        return True
    ours, theirs = _tasks(last), _tasks(end)
    if above == over and not (ours and theirs):  # nobody knows what one of them does
        return True
    return _part(above) == _part(over) and (last == end or bool(ours & theirs))


def _tasks(name: str) -> set[str]:
    """What a module of this name can do in a layer; nothing if nobody knows."""
    return {task for task, names in _TASKS.items() if _fits(names, name)}


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
    """A module that may hold several, and one of its parts in the same place."""
    parts: dict[str, list[str]] = defaultdict(list)
    for name in theirs:
        home, last = _home(name)
        if not _tasks(last) or _tasks(last) & _PARTS:
            parts[home].append(name)
    for name in ours:
        home, last = _home(name)
        for part in parts.get(home, ()):
            (outs, ins), (rows, width) = first[name], other[part]
            if ins == width and outs > rows and (_holds(last) or outs == 2 * rows):
                yield name, part


def _home(name: str) -> tuple[str, str]:
    """(which part of a layer, the last of a name); what feeds forward is told apart by its module."""
    above, _, last = name.rpartition(".")
    part = _part(above)
    return (above if part == "feed-forward" else part), last


def _holds(last: str) -> bool:
    """Whether a module may be several in one: it looks so, or it does nothing that is known."""
    return not _tasks(last) or _FUSED.fullmatch(last) is not None


def _twice(adapters: Sequence[Adapter], one: str, two: str) -> IncompatibleError:
    names = [f"{_holder(adapters, name)} has {printable(name)}" for name in (one, two)]
    return IncompatibleError(
        f"{' where '.join(names)}, and no model with both is known here: this may be one weight under two "
        f"names, of which a program loads only one. If it is, say so with {say('rename', {'OLD': 'NEW'})}; "
        f"if they are two modules, add {say('allow_disjoint', True)}."
    )


def _holder(adapters: Sequence[Adapter], name: str) -> str:
    """The first source that has a module of this path, or one called so in its layer."""
    holders = (a for a in adapters if any(name in own for own in _rests(a).values()))
    paths = (a for a in adapters if any(target.path == name for target in a.slots))
    return printable(next(a.name for each in (paths, holders) for a in each))
