"""The page about routing says what the program does: its commands and its Python run."""

from __future__ import annotations

import sys

import pytest

from tests.test_docs import blocks, run, workplace  # noqa: F401  the fixture

PAGE = "docs/routing.md"


def test_every_shell_line_works(workplace):  # noqa: F811
    (code,) = blocks("bash", page=PAGE)
    for line in code.splitlines():
        done = run(["bash", "-c", line], workplace)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert (workplace / "sum.safetensors").exists()


def test_the_python_works(workplace):  # noqa: F811
    (code,) = blocks("python", page=PAGE)
    done = run([sys.executable, "-W", "error", "-c", code], workplace)
    assert done.returncode == 0, done.stderr
    assert "gate spectr (top_k 1, temperature 1), 16 tokens" in done.stdout
    assert (workplace / "bundle-mixed" / "router.safetensors").exists()


def test_the_torch_works(workplace, monkeypatch, capsys):  # noqa: F811
    pytest.importorskip("transformers")
    monkeypatch.chdir(workplace)
    (code,) = blocks("python", "run: torch", page=PAGE)
    exec(compile(code, PAGE, "exec"), {})
    assert "torch.Size([1, 8, 64])" in capsys.readouterr().out
