"""Every command, the Python and the recipe of docs/base-models.md work."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.cli import main
from tests.helpers.models import random_model, save_model

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "base-models.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """What the page speaks of."""
    monkeypatch.chdir(tmp_path)
    before = random_model()
    rng, after = np.random.default_rng(1), dict(before)
    for key in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"):
        outs, ins = before[key].shape
        change = rng.standard_normal((outs, 4)) @ rng.standard_normal((4, ins))
        after[key] = (before[key] + 0.1 * change).astype(np.float32)
    after["model.norm.weight"] = after["model.norm.weight"] + 1
    for name, tensors in (("base", before), ("tuned", after)):
        save_model(Path(name), tensors, shards=2)
    update = lm.LowRank(rng.standard_normal((16, 2)), rng.standard_normal((2, 16)))
    lm.save(lm.Adapter.of({"model.layers.0.self_attn.q_proj": update}), "adapter", format="peft")


def run(line):
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(line)[1:])
    return ended.value.code


def test_every_command_works(place, capsys):
    lines = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]
    assert len(lines) == 7
    for line in lines:
        assert run(line) == 0, f"{line}\n{capsys.readouterr().err}"


def test_the_python_and_the_recipe_work(place, capsys):
    (code,) = blocks("python")
    exec(code, {})
    Path("recipe.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    assert run("loramerge combine --recipe recipe.yaml -o merged") == 0, capsys.readouterr().err
    assert {target.path for target in lm.load("merged")} == {
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    }
