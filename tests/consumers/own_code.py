"""The code of consumers that are too large to install, out of the archives that docs/consumers.md names."""

from __future__ import annotations

import ast
import logging
import os
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import pytest

VARIABLE = "LORAMERGE_CONSUMERS"


def archive(pattern: str) -> Path:
    """The archive of that name in the folder that LORAMERGE_CONSUMERS names."""
    place = os.environ.get(VARIABLE)
    found = sorted(Path(place).glob(pattern)) if place else []
    if not found:
        pytest.fail(f"{VARIABLE} names no folder with {pattern}: see docs/consumers.md for the command")
    return found[-1]


def source(wheel: Path, path: str) -> str:
    """One file of a wheel."""
    with zipfile.ZipFile(wheel) as opened:
        return opened.read(path).decode()


def unpacked(sdist: Path, folder: str, to: Path) -> Path:
    """One folder of a source archive."""
    with tarfile.open(sdist) as opened:
        inside = [m for m in opened.getmembers() if f"/{folder}/" in m.name]
        opened.extractall(to, inside, filter="data")
    return next(to.glob(f"*/{folder}"))


def module(monkeypatch: pytest.MonkeyPatch, name: str, text: str = "", **values: object) -> types.ModuleType:
    """A module in sys.modules for the time of a test, with its parents: run from text, or made of values."""
    parent = name.rpartition(".")[0]
    if parent and parent not in sys.modules:
        module(monkeypatch, parent)
    made = types.ModuleType(name)
    made.__dict__.update(values)
    monkeypatch.setitem(sys.modules, name, made)
    exec(compile(text, name, "exec"), made.__dict__)
    return made


def only(text: str, *names: str) -> str:
    """The functions and constants of a module that have these names, without its imports."""
    nodes = ast.parse(text).body
    kept = [n for n in nodes if getattr(n, "name", None) in names or _assigns(n) & set(names)]
    assert len(kept) == len(names)
    return "\n".join(ast.unparse(node) for node in kept)


def _assigns(node: ast.stmt) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def quiet(name: str) -> logging.Logger:
    """A logger that also has vLLM's `info_once`."""
    logger = logging.getLogger(f"of a consumer.{name}")
    logger.info_once = logger.warning_once = logger.debug  # type: ignore[attr-defined]
    return logger
