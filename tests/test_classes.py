"""A class is abstract or final: what is implemented once is not implemented again below."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import loramerge

PACKAGE = Path(loramerge.__file__).parent
CONTRACTS = {  # their methods have a default where most have nothing of their own to say
    "loramerge.algorithms.method.Method",
    "loramerge.formats.dialects.dialect.Dialect",
    "loramerge.routing.gates.gate.Gate",
    "loramerge.routing.imports.system.System",
}
OPEN = {
    ("loramerge.algorithms.families.size.Ranked", name) for name in ("foreseen", "searches", "look", "after")
}
OPEN |= {  # names that are only read are adopted as they are
    ("loramerge.formats.dialects.spelling.Spelled", name) for name in ("learn", "adopt")
}
OURS = ("__post_init__", "__init__")  # they add to what stands above them
EXTENDED = {
    ("loramerge.algorithms.method.Method", "options"),
    ("loramerge.routing.gates.gate.Gate", "row"),
}  # by `super()`: more than the fields is kept


@cache
def _classes() -> dict[str, tuple[ast.ClassDef, dict[str, str]]]:
    """Full name -> the class, and what the names in its file stand for."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found[f"{module}.{node.name}"] = node, names
    return found


def _above(name: str) -> Iterator[str]:
    node, names = _classes()[name]
    here = name.rpartition(".")[0]
    for base in (b.value if isinstance(b, ast.Subscript) else b for b in node.bases):
        if isinstance(base, ast.Name):
            above = names.get(base.id, f"{here}.{base.id}")
            if above in _classes():
                yield above
                yield from _above(above)


def _methods(name: str) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in _classes()[name][0].body if isinstance(node, ast.FunctionDef)}


def _is_abstract(method: ast.FunctionDef) -> bool:
    said = [ast.unparse(each) for each in (*method.decorator_list, method.body[-1])]
    return any("abstractmethod" in each or "NotImplementedError" in each for each in said)


def _again() -> Iterator[tuple[str, str, str]]:
    """Class, method, and the class above that implements it already."""
    for name in _classes():
        for method in _methods(name).keys() - set(OURS):
            for above in _above(name):
                own = _methods(above).get(method)
                if own is not None and not _is_abstract(own):
                    yield name, method, above


def test_what_is_implemented_is_not_overridden() -> None:
    again = {each for each in _again() if each[2] not in CONTRACTS and (each[2], each[1]) not in OPEN}

    assert again == set()


def test_the_defaults_of_a_contract_are_answered_and_not_extended() -> None:
    """`super().weigh(…)` would make two classes out of one answer."""
    extended = {
        (above, method)
        for name, method, above in _again()
        if f"super().{method}" in ast.unparse(_methods(name)[method])
    }

    assert extended <= EXTENDED


def test_the_walk_finds_classes_and_what_they_answer() -> None:
    again = set(_again())
    lego = ("loramerge.algorithms.lego.Lego", "weigh", "loramerge.algorithms.method.Method")

    assert lego in again
    assert {above for _, _, above in again} >= CONTRACTS
    assert OPEN <= {(above, method) for _, method, above in again}, "what nobody answers need not be open"
