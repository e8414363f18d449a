"""Names of modules rewritten by templates: `encoder.layer.*.output.dense` as `layers.*.mlp.fc2`.

A template stands for whole segments of a path. A `*` is one segment, which the new name takes over in order.
`{query,key}` and `{q,k}` are two templates in one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from loramerge.adapters.late import late

_BRACES = late(r"\{([^{}]*)\}")


class Template(NamedTuple):
    """One rewriting of a part of a path; `first`: only of its beginning.

    >>> Template("encoder.layer.*.mlp", "layers.*.mlp").rewrite("vit.encoder.layer.3.mlp.fc1")
    'vit.layers.3.mlp.fc1'
    >>> Template("model", "", first=True).rewrite("model.layers.0.q")
    'layers.0.q'
    """

    old: str
    new: str
    first: bool = False

    def rewrite(self, path: str) -> str | None:
        """The new name of a path; None if it is not meant."""
        found = _search(self.old, self.first, path)
        return None if found is None else self._put(path, found)

    def made(self, path: str) -> bool:
        """Whether a path looks like a new name."""
        return _search(self.new, self.first, path) is not None

    def _put(self, path: str, found: re.Match[str]) -> str:
        groups = iter(found.groups())
        middle = ".".join(next(groups, "*") if part == "*" else part for part in self.new.split("."))
        whole = [path[: found.start()].rstrip("."), middle, path[found.end() :].lstrip(".")]
        return ".".join(part for part in whole if part)


class Beginnings:
    """Templates of beginnings, found by the segments of a path: a table may have one for every module.

    >>> rules = [Template("model.*", "m", first=True), Template("model", "", first=True)]
    >>> sorted(Beginnings(rules).of("model.layers.0")), sorted(Beginnings(rules).of("models.0"))
    ([0, 1], [])
    """

    def __init__(self, rules: Iterable[Template]) -> None:
        self._root = _Node({}, [])
        for number, rule in enumerate(rules):
            node = self._root
            for part in filter(None, rule.old.split(".")):
                node = node.after.setdefault(part, _Node({}, []))
            node.rules.append(number)

    def of(self, path: str) -> set[int]:
        """The numbers of those that are meant."""
        nodes, found = [self._root], set(self._root.rules)
        for part in path.split("."):
            nodes = [node.after[key] for node in nodes for key in (part, "*") if part and key in node.after]
            found.update(number for node in nodes for number in node.rules)
        return found


class _Node(NamedTuple):
    after: dict[str, _Node]
    rules: list[int]


def _search(template: str, first: bool, path: str) -> re.Match[str] | None:
    """Where a template meets a path; a pattern is made only for a path that has its longest words."""
    return _compiled(template, first).search(path) if _longest(template) in path else None


@cache
def _longest(template: str) -> str:
    whole = ".".join(filter(None, template.split(".")))  # two dots stand for one, as in the pattern
    return max(whole.split("*"), key=len).strip(".")


@cache
def _compiled(template: str, first: bool) -> re.Pattern[str]:
    segments = [r"([^.]+)" if part == "*" else re.escape(part) for part in template.split(".") if part]
    start = "^" if first else r"(?:^|(?<=\.))"
    return re.compile(start + r"\.".join(segments) + (r"(?:\.|$)" if segments else ""))


def templates(lines: str) -> tuple[Template, ...]:
    """The templates in a table: the old and the new name on each line.

    >>> [each.new for each in templates("attention.{query,key} {q,k}_proj")]
    ['q_proj', 'k_proj']
    """
    made = []
    for line in lines.strip().splitlines():
        old, _, new = line.strip().partition(" ")
        olds, news = spread(old), spread(new.strip() or old)
        made += [Template(*pair) for pair in zip(olds, news, strict=True)]
    return tuple(made)


def spread(text: str) -> list[str]:
    """A name with braces as the names that it stands for.

    >>> spread("{q,k}_proj")
    ['q_proj', 'k_proj']
    """
    found = _BRACES.search(text)
    if found is None:
        return [text]
    return [each for word in found[1].split(",") for each in spread(text.replace(found[0], word, 1))]
