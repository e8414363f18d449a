"""Imports point one way, without cycles, and heavy libraries stay out of reach of a plain merge."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "loramerge"

FORBIDDEN = [  # (who, may not import)
    ("loramerge.errors", "loramerge."),
    ("loramerge.arrays.backend", "loramerge."),
    ("loramerge.adapters.target", "loramerge."),
    ("loramerge.adapters.lowrank", "loramerge.sources.units"),
    ("loramerge.adapters.lowrank", "loramerge.arrays.gram"),
    ("loramerge.arrays.gram", "loramerge.sources.units"),
    ("loramerge.sources.units", "loramerge.algorithms"),
    ("loramerge.algorithms", "loramerge.formats"),
    ("loramerge.algorithms", "loramerge.adapters.adapter"),
    ("loramerge.algorithms", "loramerge.sources.units"),
    ("loramerge.algorithms", "loramerge.merge.run"),
    ("loramerge.formats", "loramerge.algorithms"),
    ("loramerge.formats", "loramerge.merge.run"),
    ("loramerge.hub", "loramerge.adapters.adapter"),
    ("loramerge.hub", "loramerge.algorithms"),
    ("loramerge.hub", "loramerge.merge.run"),
    ("loramerge.hub", "loramerge.formats"),
    ("loramerge.hub", "loramerge.verbs.push"),
    ("loramerge.formats", "loramerge.consumers"),
    ("loramerge.consumers", "loramerge.algorithms"),
    ("loramerge.consumers", "loramerge.consumers.check"),
    ("loramerge.consumers", "loramerge.merge.run"),
    ("loramerge.consumers.check", "loramerge.merge.plan"),
    ("loramerge.merge.tailor", "loramerge.merge.plan"),
    ("loramerge.cuda", "loramerge.formats"),
    ("loramerge.cuda", "loramerge.algorithms"),
    ("loramerge", "loramerge.cli"),
]
ONLY_IN = {
    "click": "loramerge.cli",
    "cupy": ("loramerge.arrays.backend", "loramerge.cuda"),
    "huggingface_hub": "loramerge.hub",
    "tqdm": "loramerge.cli",
}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every module named in an import statement, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


MODULES = {name_of(path): imports(path) for path in sorted(PACKAGE.rglob("*.py"))}


def test_imports_have_no_cycle() -> None:
    within = {
        name: {other for other in names if other in MODULES} - {name} for name, names in MODULES.items()
    }
    for name, names in within.items():  # `from loramerge.x import y` also names the package itself
        names -= {parent for parent in names if name.startswith(f"{parent}.") or parent == "loramerge"}
    TopologicalSorter(within).prepare()


@pytest.mark.parametrize(("who", "whom"), FORBIDDEN)
def test_nothing_imports_against_the_direction(who: str, whom: str) -> None:
    allowed = {"loramerge.cli", "loramerge.__main__"} if whom == "loramerge.cli" else set()
    guilty = {
        name: sorted(other for other in names if f"{other}.".startswith(f"{whom.rstrip('.')}."))
        for name, names in MODULES.items()
        if f"{name}.".startswith(f"{who}.") and not any(f"{name}.".startswith(f"{a}.") for a in allowed)
    }
    if whom == "loramerge.":
        guilty = {name: [o for o in others if o != "loramerge"] for name, others in guilty.items()}

    assert {name: others for name, others in guilty.items() if others} == {}


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_imported_in_its_room_only(library: str) -> None:
    users = {name for name, names in MODULES.items() if any(f"{o}.".startswith(f"{library}.") for o in names)}

    assert users
    assert all(name.startswith(ONLY_IN[library]) for name in users)


@pytest.mark.parametrize(
    ("command", "absent"),
    [
        ("from loramerge.cli import main; main(['--help'])", ("numpy", "torch", "sklearn", "safetensors")),
        ("import loramerge.merge.run", ("torch", "sklearn", "huggingface_hub", "matplotlib", "tqdm")),
    ],
)
def test_heavy_libraries_are_not_loaded(command: str, absent: tuple[str, ...]) -> None:
    loaded = f"import sys; print([m for m in {absent} if m in sys.modules])"
    probe = f"try:\n {command}\nexcept SystemExit: pass\n{loaded}"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"


def test_the_two_tables_of_contents_agree() -> None:
    import loramerge

    stub = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    named = {
        alias.name: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    verbs = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    named |= {name: f"loramerge.verbs.{name}" for name in verbs}

    assert named == {name: f"loramerge.{home}" for name, home in loramerge._HOME.items()}
    assert all(getattr(loramerge, name).__doc__ or name == "METHODS" for name in loramerge.__all__)
    assert set(dir(loramerge)) == set(loramerge.__all__) | {"open"}
