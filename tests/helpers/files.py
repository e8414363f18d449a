"""Small adapters on disk, as PEFT and other tools write them, and what they should come to."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from loramerge.algorithms import METHODS
from loramerge.cli import COMMANDS, loramerge, main
from loramerge.cli.options import options_of
from loramerge.request.default import DEFAULT

SHAPES = {"layers.0.q": (6, 5), "layers.0.v": (4, 7), "layers.1.q": (6, 5), "layers.1.v": (4, 7)}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "tiny"}


def key(path: str, side: str) -> str:
    return f"base_model.model.{path}.lora_{side}.weight"


def tensors(seed=0, rank: int | Mapping[str, int] = 2, shapes=SHAPES, dtype=np.float32) -> dict[str, Any]:
    """PEFT-named factors; `rank` is one number, or one for each module."""
    rng, made = np.random.default_rng(seed), {}
    for path, (outs, ins) in shapes.items():
        r = rank if isinstance(rank, int) else rank[path]
        made[key(path, "A")] = rng.standard_normal((r, ins)).astype(dtype)
        made[key(path, "B")] = rng.standard_normal((outs, r)).astype(dtype)
    return made


def bare(path: Path, values: Mapping[str, Any] | None = None, metadata=None) -> Path:
    """A lone .safetensors; without metadata it does not say its alpha."""
    values = tensors() if values is None else values
    save_file({name: np.asarray(value) for name, value in values.items()}, path, metadata)
    os.chmod(path, 0o644)
    return path


def folder(path: Path, values: Mapping[str, Any] | None = None, config: Any = None, **changes) -> Path:
    """A PEFT folder; `changes` go into the usual config, `config` replaces it (text is written as it is)."""
    path.mkdir()
    bare(path / "adapter_model.safetensors", values, {"format": "pt"})
    config = {**CONFIG, **changes} if config is None else config
    text = config if isinstance(config, str) else json.dumps(config)
    (path / "adapter_config.json").write_text(text)
    return path


def raw(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A file with the header of a safetensors, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def dense(values: Mapping[str, Any], scale: float | Mapping[str, float] = 1.0) -> dict[str, np.ndarray]:
    """Module path -> ΔW in float64."""
    made = {}
    for path in {name.split(".lora_")[0] for name in values if ".lora_" in name}:
        module = path.removeprefix("base_model.model.")
        up, down = (np.asarray(values[key(module, side)], dtype=np.float64) for side in "BA")
        made[module] = (scale if isinstance(scale, float) else scale[module]) * (up @ down)
    return made


def read(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file, by the library of the format."""
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def content(path: Path) -> dict[str, bytes]:
    """Every file at or below a path, dot files too."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@cache
def _options(name: str) -> frozenset[str]:
    command = loramerge.get_command(click.Context(loramerge), name)
    return frozenset(opt for each in command.params for opt in (*each.opts, *each.secondary_opts))


def options(commands, methods=()) -> set[str]:
    """All options of these commands and methods."""
    own = (each.opts for name in methods for each in options_of(name))
    return {"--help"}.union(*map(_options, commands), *own)


class Cli:
    """`loramerge` in this process: `cli("combine", …)` gives the exit code and what was printed."""

    def __init__(self, capsys) -> None:
        self._capsys = capsys
        self.code, self.out, self.err = None, "", ""

    def __repr__(self) -> str:
        """What pytest shows beside a failing assertion: how the last command ended."""
        logs = [Path(each) for each in re.findall(r"/\S+/loramerge-\w+\.log", self.err)]
        return f"exit {self.code}: {self.err}" + "".join(each.read_text() for each in logs if each.exists())

    def __call__(self, *args) -> Cli:
        self._capsys.readouterr()
        try:
            main([str(arg) for arg in args])
        except SystemExit as stop:
            self.code = stop.code
        self.out, self.err = self._capsys.readouterr()
        self._check_advice(list(map(str, args)))
        return self

    def _check_advice(self, typed: list[str]) -> None:
        """An error names no option that its command, or another command that it names, does not have."""
        errors = [line for line in self.err.splitlines() if line.startswith("Error: ")]
        errors = [re.sub(r"`(?!loramerge )[a-z]+ [^`]*`", "", line) for line in errors]  # of other programs
        words = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", "\n".join(errors)))
        strange = {word for word in words if not any(word in arg or arg in word for arg in typed[1:])}
        if strange and typed[0] in COMMANDS:
            said = {word.strip("'\"`,.:;()") for word in " ".join([*typed, *errors]).split()}
            methods = METHODS.keys() & said or {DEFAULT}  # who names none has the options of the default
            assert strange <= options({typed[0], *COMMANDS} & said, methods), (typed, errors)

    def json(self) -> Any:
        return json.loads(self.out, parse_constant=lambda name: 1 / 0)

    def refused(self, code: int, *words: str) -> None:
        """One sentence on stderr with these words, nothing on stdout, this exit code."""
        assert self.code == code, self.err
        assert self.out == ""
        assert self.err.startswith("Error: ")
        assert self.err.count("\n") == 1
        assert self.err[:-1].isprintable()
        for word in words:
            assert word in self.err
