"""Files, functions and signatures stay small enough to be read at once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1] / "loramerge"
FILES = {path: path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}
GENERATED = {"catalogue.py"}


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """(where, function) of the whole package."""
    for path, text in FILES.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


FUNCTIONS = list(functions())


def parameters(function: ast.FunctionDef) -> int:
    """How many a caller may give; ``**asked`` are fields of the request."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls", "ctx")])


def statements(function: ast.FunctionDef) -> int:
    """Lines of its body after the docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]


def test_no_file_is_above_400_lines_and_half_are_below_120() -> None:
    lines = {path: text.count("\n") for path, text in FILES.items() if path.name not in GENERATED}
    assert {path: count for path, count in lines.items() if count > 400} == {}
    assert median(lines.values()) <= 120


def test_no_function_has_more_than_eight_parameters() -> None:
    assert {where: parameters(each) for where, each in FUNCTIONS if parameters(each) > 8} == {}


def test_half_of_the_functions_have_no_more_than_eight_lines() -> None:
    assert median(statements(each) for _, each in FUNCTIONS) <= 8
