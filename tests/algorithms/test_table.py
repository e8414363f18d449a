"""The table of methods: a file is a method, and every rule stands among the rules."""

from pathlib import Path

import pytest

import loramerge
from loramerge.algorithms import METHODS
from loramerge.algorithms.entries.elementwise import Elementwise
from loramerge.algorithms.table import RULES

FOLDER = Path(loramerge.__file__).parent / "algorithms"
OTHERS = {"__init__", "memory", "names", "method", "only", "plugins", "table"}  # no methods of the table


def test_a_file_of_algorithms_is_a_method():
    files = {path.stem for path in FOLDER.glob("*.py")} - OTHERS
    assert files == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_named_like_its_file(name):
    assert METHODS[name].__module__ == f"loramerge.algorithms.{name}"
    assert METHODS.name_of(METHODS[name]) == name


def test_every_elementwise_method_is_a_rule():
    assert {name for name, cls in METHODS.items() if issubclass(cls, Elementwise)} == set(RULES)


@pytest.mark.parametrize("room", ["entries", "families"])
def test_machinery_holds_no_method(room):
    homes = {cls.__module__ for cls in METHODS.values()}
    assert not any(home.startswith(f"loramerge.algorithms.{room}.") for home in homes)
    opening = (FOLDER / room / "__init__.py").read_text(encoding="utf-8")
    assert opening.startswith('"""')
    assert opening.count("\n") == 1
