"""The documents say what the program does: their code runs, their tables are fresh, their output is real."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import loramerge
from loramerge.algorithms import METHODS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:<!-- (?P<mark>[\w: ]+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)
BLOCKS = [match.groupdict() for match in BLOCK.finditer(README)]


def blocks(language: str, marked: str | None = None) -> list[str]:
    return [b["code"] for b in BLOCKS if b["language"] == language and b["mark"] == marked]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "fixtures", tmp_path / "fixtures")
    return tmp_path


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "100"}
    return subprocess.run(command, cwd=cwd, env={**os.environ, **path}, capture_output=True, text=True)


def test_every_shell_line_of_the_readme_works(workplace: Path) -> None:
    lines = [line for code in blocks("bash") for line in code.splitlines() if line]

    assert len(lines) >= 5
    for line in lines:
        done = run(["bash", "-c", line], workplace)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stdout


def test_the_python_of_the_readme_works(workplace: Path) -> None:
    (code,) = blocks("python")
    done = run([sys.executable, "-W", "error", "-c", code], workplace)

    assert done.returncode == 0, done.stderr
    assert (workplace / "merged-folder" / "adapter_config.json").exists()


def test_the_recipe_of_the_readme_works(workplace: Path) -> None:
    (text,) = blocks("yaml")
    (workplace / "recipe.yaml").write_text(text, encoding="utf-8")
    done = run(["loramerge", "combine", "--recipe", "recipe.yaml"], workplace)

    assert done.returncode == 0, done.stderr
    assert "modules follow the rule for" in done.stderr


def test_the_output_shown_in_the_readme_is_what_the_main_job_prints(workplace: Path) -> None:
    (shown,) = blocks("text", "output: lego")
    (install,) = blocks("bash", "run: install")
    command = install.splitlines()[-1].removeprefix(".venv/bin/")
    done = run(command.split(), workplace)

    def without_digits(text: str) -> list[str]:  # another BLAS rounds otherwise
        return [re.sub(r"\d+\.\d+(e-\d+)?", "N", line).rstrip() for line in text.strip().splitlines()]

    assert without_digits(done.stdout) == without_digits(shown)
    assert (workplace / "merged.safetensors").exists()


def test_the_readme_has_the_two_commands_that_ci_runs() -> None:
    assert len(blocks("bash", "run: install")) == len(blocks("bash", "run: test")) == 1
    assert "torch" not in blocks("bash", "run: install")[0]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_documents_are_fresh() -> None:
    stale = [path.name for path, text in generator().documents().items() if path.read_text("utf-8") != text]

    assert stale == [], "run python docs/generate.py"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_its_formula_source_and_limits(name: str) -> None:
    text = inspect.getdoc(METHODS[name]) or ""

    assert all(word in text for word in ("ΔW" if name != "lego" else "uᵢ", "Source:", "Limits:")), text


@pytest.mark.parametrize("name", [n for n in loramerge.__all__ if n != "METHODS"])
def test_every_public_name_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(getattr(loramerge, name))


def test_relative_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "fixtures" / "README.md"]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
