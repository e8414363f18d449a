"""Imports point one way, without cycles, and heavy libraries stay out of reach of a plain merge."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "loramerge"

ROOMS = (  # a room may import those before it and itself; what is inside a room is its own affair
    "errors", "charts", "arrays", "cuda", "adapters", "hub", "algorithms", "formats", "consumers",
    "checkpoints", "request", "sources", "routing", "merge", "verbs", "testing", "pages", "cli", "__main__",
)  # fmt: skip
ONLY_IN = {
    "altair": "loramerge.charts",
    "click": "loramerge.cli",
    "cupy": "loramerge.arrays.backend",
    "huggingface_hub": "loramerge.hub",
    "vl_convert": "loramerge.pages",
    "tqdm": ("loramerge.cli", "loramerge.request.progress"),
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


@cache
def modules() -> dict[str, set[str]]:
    return {name_of(path): imports(path) for path in sorted(PACKAGE.rglob("*.py"))}


def test_imports_have_no_cycle() -> None:
    within = {
        name: {other for other in names if other in modules()} - {name} for name, names in modules().items()
    }
    for name, names in within.items():  # `from loramerge.x import y` also names the package itself
        names -= {parent for parent in names if name.startswith(f"{parent}.") or parent == "loramerge"}
    TopologicalSorter(within).prepare()


def room_of(module: str) -> int:
    return ROOMS.index(module.split(".")[1])


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_down_the_list_of_rooms(room: str) -> None:
    upward = {
        name: sorted(
            other
            for other in others
            if other in modules() and other.count(".") and room_of(other) > room_of(name)
        )
        for name, others in modules().items()
        if name.count(".") and name.split(".")[1] == room
    }

    assert upward, "the room is there"
    assert {name: others for name, others in upward.items() if others} == {}


def test_at_the_top_are_rooms_and_four_modules() -> None:
    top = {path.stem for path in PACKAGE.glob("*.py")}

    assert top == {"__init__", "__main__", "errors", "testing"}
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == set(ROOMS) - top


IRREGULAR = {"broken", "found", "given", "held", "kept", "known", "made", "said", "shown", "told", "written"}
TYPED = {"tuned"}  # by the user: TUNED of `extract`, `tuned:` of a recipe, `lm.Tuned`


def test_no_file_is_a_participle() -> None:
    names = {path.stem for path in PACKAGE.rglob("*.py")}

    assert {name for name in names if name.endswith("ed") or name in IRREGULAR} == TYPED


BESIDE = {"laws", "fuzz", "parity", "benchmarks"}  # of all methods, hostile input, other programs, scripts


def test_the_tests_mirror_the_rooms() -> None:
    tests = Path(__file__).parent
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")} - {Path()}
    rooms = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("__init__.py")} - {Path()}

    assert {str(each) for each in folders - rooms} == BESIDE
    assert {each for each in rooms - folders if len(each.parts) == 1} == set()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda p: p.parent.name)
def test_a_room_opens_with_its_sentence(path: Path) -> None:
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""

    assert said.partition("\n")[0].endswith((".", ":")), path


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_imported_in_its_room_only(library: str) -> None:
    users = {
        name for name, names in modules().items() if any(f"{o}.".startswith(f"{library}.") for o in names)
    }

    assert users
    assert all(name.startswith(ONLY_IN[library]) for name in users)


UNUSED = (  # by two adapters of safetensors, merged at a rank: what other merges need is loaded for them
    "loramerge.checkpoints.difference",
    "loramerge.formats.files.pickles",
    "loramerge.hub.client",
    "loramerge.merge.curve",
    "loramerge.request.recipe_text",
    "loramerge.sources.similarity",
    "ml_dtypes",
    "numpy.ma",
    "zipfile",
)


@pytest.mark.parametrize(
    ("command", "absent"),
    [
        ("from loramerge.cli import main; main(['--help'])", ("numpy", "torch", "sklearn", "safetensors")),
        (
            "import loramerge.merge.run",
            ("torch", "sklearn", "huggingface_hub", "altair", "vl_convert", "tqdm"),
        ),
        ("import loramerge.pages.report", ("torch", "sklearn", "altair", "vl_convert")),
        (
            "from loramerge.cli import main; "
            "main('combine fixtures/a.safetensors fixtures/b.safetensors --method lego -o'.split() + [OUT])",
            ("torch", "sklearn", "huggingface_hub", "altair", "tqdm", *UNUSED),
        ),
    ],
)
def test_heavy_libraries_are_not_loaded(command: str, absent: tuple[str, ...], tmp_path: Path) -> None:
    loaded = f"import sys; print([m for m in {absent} if m in sys.modules])"
    probe = f"OUT = {str(tmp_path / 'out')!r}\ntry:\n {command}\nexcept SystemExit: pass\n{loaded}"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )

    assert done.stdout.splitlines()[-1] == "[]"
    assert "OUT" not in command or (tmp_path / "out").exists(), done.stderr


ROOM_OF = {"report": "pages", "load": "sources"}  # of functions that are no verb of `verbs/`


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
    named |= {name: f"loramerge.{ROOM_OF.get(name, 'verbs')}.{name}" for name in verbs}

    assert named == {name: f"loramerge.{home}" for name, home in loramerge._HOME.items()}
    assert all(getattr(loramerge, name).__doc__ or name == "METHODS" for name in loramerge.__all__)
    assert set(dir(loramerge)) == set(loramerge.__all__) | {"open"}


def test_packages_with_methods_find_modules_by_their_former_names() -> None:
    import importlib

    import loramerge

    for former, here in loramerge._FORMER.items():
        module = importlib.import_module(f"loramerge.{former}")
        assert module is importlib.import_module(f"loramerge.{here}")
        assert module.__spec__ is not None
        assert module.__spec__.name == module.__name__ == f"loramerge.{here}"
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("loramerge.nowhere")
