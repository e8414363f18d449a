"""The documents say what the program does: their code runs, their tables are fresh, their output is real."""

from __future__ import annotations

import base64
import importlib.util
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from types import ModuleType

import pytest

import loramerge
from loramerge.algorithms import METHODS
from tests.helpers.files import Cli

ROOT = Path(__file__).resolve().parent.parent
RUN = (
    "README.md",
    "docs/combine.md",
    "docs/python.md",
    "docs/report.md",
)  # their code is run, from where README.md lies
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "fixtures" / "README.md"]
BLOCK = re.compile(r"(?:<!-- (?P<mark>[\w: ]+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)


def blocks(language: str, marked: str | None = None, page: str = "README.md") -> list[str]:
    found = [match.groupdict() for match in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))]
    return [b["code"] for b in found if b["language"] == language and b["mark"] == marked]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "fixtures", tmp_path / "fixtures")
    return tmp_path


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"}
    return subprocess.run(command, cwd=cwd, env={**os.environ, **path}, capture_output=True, text=True)


def check_extra(page: str) -> None:
    """Skips what needs the extra `report`, where it is not installed."""
    if page == "docs/report.md":
        pytest.importorskip("altair")
        pytest.importorskip("vl_convert")


@pytest.mark.parametrize("page", [page for page in RUN if blocks("bash", page=page)])
def test_every_shell_line_works(
    workplace: Path, page: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the README in a shell, with a process for each; of the others only what a shell must read."""
    check_extra(page)
    monkeypatch.chdir(workplace)
    cli = Cli(capsys)
    lines = [line for code in blocks("bash", page=page) for line in code.splitlines() if line]

    assert len(lines) >= 3
    for line in lines:
        program, *words = shlex.split(line)
        if page == "README.md" or program != "loramerge" or set("|&;<>$`*?") & set(line):
            done = run(["bash", "-c", line], workplace)
            code, out, err = done.returncode, done.stdout, done.stderr
        else:
            cli(*words)
            code, out, err = cli.code, cli.out, cli.err
        assert code == 0, f"{line}\n{err}"
        assert out


@pytest.mark.parametrize("page", [page for page in RUN if blocks("python", page=page)])
def test_the_python_works(workplace: Path, page: str) -> None:
    check_extra(page)
    (code,) = blocks("python", page=page)
    done = run([sys.executable, "-W", "error", "-c", code], workplace)

    assert done.returncode == 0, done.stderr
    assert (workplace / "merged-folder" / "adapter_config.json").exists()


def test_the_recipe_works(workplace: Path) -> None:
    (text,) = blocks("yaml", page="docs/combine.md")
    (workplace / "recipe.yaml").write_text(text, encoding="utf-8")
    done = run(["loramerge", "combine", "--recipe", "recipe.yaml"], workplace)

    assert done.returncode == 0, done.stderr
    assert "modules follow the rule for" in done.stderr


def test_the_output_shown_in_the_readme_is_what_the_main_job_prints(workplace: Path) -> None:
    (shown,) = blocks("text", "output: install")
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


def module(name: str) -> ModuleType:
    """A script of docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_generated_documents_are_fresh() -> None:
    stale = [
        path.name for path, text in module("generate").documents().items() if path.read_text("utf-8") != text
    ]

    assert stale == [], "run python docs/generate.py"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_its_formula_source_and_limits(name: str) -> None:
    text = inspect.getdoc(METHODS[name]) or ""

    assert all(word in text for word in ("ΔW" if name != "lego" else "uᵢ", "Source:", "Limits:")), text


@pytest.mark.parametrize("name", [n for n in loramerge.__all__ if n != "METHODS"])
def test_every_public_name_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(getattr(loramerge, name))


def test_relative_links_lead_somewhere() -> None:
    for page in PAGES:
        text = re.sub(
            r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL
        )  # not code
        for link, part in re.findall(r"\]\(([^)#:]*)(#[^)]*)?\)", text):
            there = page.parent / link if link else page
            assert there.exists(), f"{page.name}: {link}"
            assert not part or part in anchors(there), f"{page.name}: {link}{part}"


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {"#" + re.sub(r"[^\w\- ]", "", head).lower().replace(" ", "-") for head in heads}


def test_the_files_that_the_pages_name_are_there() -> None:
    """`room/file.py` in a page is a file of the package, of the tests or of the documents."""
    rooms = [ROOT, ROOT / "loramerge"]
    for page in PAGES:
        for name in re.findall(r"`([\w/]+/\w+\.py)`", page.read_text(encoding="utf-8")):
            ours = any((room / name.partition("/")[0]).is_dir() for room in rooms) and "NAME" not in name
            assert not ours or any((room / name).exists() for room in rooms), f"{page.name}: {name}"


def test_the_picture_is_of_the_merge_that_it_shows() -> None:
    """The same words, and the same values up to a level of grey: another BLAS rounds otherwise."""
    drawn, kept = module("picture").picture(), (ROOT / "docs" / "merge.svg").read_text(encoding="utf-8")

    assert words(drawn) == words(kept)
    for ours, theirs in zip(images(drawn), images(kept), strict=True):
        assert len(ours) == len(theirs)
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1
    assert len(images(kept)) == 4
    assert len(set(images(kept)[2])) > 20


def words(svg: str) -> list[str]:
    return re.findall(r">([^<\n]+)<", svg)


def images(svg: str) -> list[bytes]:
    """The pixels of its PNGs, as their only IDAT chunk holds them."""
    files = [base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", svg)]
    starts = [file.index(b"IDAT") for file in files]
    return [
        zlib.decompress(file[at + 4 : at + 4 + int.from_bytes(file[at - 4 : at])])
        for file, at in zip(files, starts, strict=True)
    ]
