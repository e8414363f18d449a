"""Dense deltas: the merge as full matrices, under the names and in the shapes of the base parameters."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import loramerge as lm
from loramerge.adapter import Held, Slot
from loramerge.errors import IncompatibleError, SourceError, UsageError
from loramerge.target import Layout
from tests.adapters import cast, distance, merged, random_adapters
from tests.files import Cli

SHAPES = {"layers.0.q": (40, 30), "layers.0.v": (12, 30)}


def written(tmp_path, sources, method="ties", **options):
    out = tmp_path / "deltas.safetensors"
    made = lm.write_deltas(lm.plan(sources, method, dtype="float64", **options), out)
    return load_file(out), made


@pytest.mark.parametrize("method", ["ties", "dare", "sce", "linear", "iso_c", "cat"])
def test_the_file_holds_what_the_method_makes_of_all_ranks(tmp_path, method):
    sources = random_adapters(1, (3, 4), SHAPES)
    found, made = written(tmp_path, sources, method, weights=[1, -0.5])
    full = {"rank": 30} if method != "cat" else {}
    wanted = merged(sources, method, [1, -0.5], **full)
    assert distance(found, {f"{path}.weight": matrix for path, matrix in wanted.items()}) < 1e-10
    assert made.rounding_error == 0.0
    assert made.cut is None


def test_the_report_is_that_of_a_refit_that_cuts_nothing(tmp_path):
    sources = random_adapters(1, (3, 4), SHAPES)
    _, dense = written(tmp_path, sources)
    full = lm.combine(sources, "ties", rank=30, dtype="float64").report
    assert dense.energy_lost == pytest.approx(full.energy_lost)
    assert dense.cosines == pytest.approx(full.cosines)
    assert dense.norm_ratios == pytest.approx(full.norm_ratios)


def test_they_are_rounded_once_and_the_report_says_by_how_much(tmp_path):
    sources = [cast(s, np.float32) for s in random_adapters(1, (3, 4), SHAPES)]
    out = tmp_path / "deltas.safetensors"
    made = lm.write_deltas(lm.plan(sources, "ties", dtype="bfloat16", scale=2.0), out)
    assert 1e-4 < made.rounding_error < 2**-8
    with safe_open(out, "numpy") as file:
        said = json.loads(file.metadata()["loramerge"])
    assert said["settings"]["dense_delta"] is True
    assert said["settings"]["scale"] == 2.0
    assert said["method"]["name"] == "ties"


def turned(update, **said):
    target = lm.Target("m", **said)
    return lm.Adapter("a", {target: Slot(Held(update.up), Held(update.down), 1.0)})


@pytest.mark.parametrize(
    ("said", "shape"),
    [
        ({}, (6, 8)),
        ({"layout": Layout(fan_in_fan_out=True)}, (8, 6)),
        ({"kind": "embedding"}, (8, 6)),
        ({"kind": "conv", "layout": Layout(kernel=(2, 2))}, (6, 2, 2, 2)),
    ],
)
def test_a_delta_has_the_shape_of_its_parameter(tmp_path, said, shape):
    update = random_adapters(1, (2,), {"m": (6, 8)})[0][lm.Target("m")]
    source = turned(update, **said)
    out = tmp_path / "deltas.safetensors"
    todo = lm.plan([source], "linear", dtype="float64")
    lm.write_deltas(todo, out)
    found = load_file(out)["m.weight"]
    assert found.shape == shape
    matrix = update.dense()
    np.testing.assert_allclose(found, matrix.T if shape == (8, 6) else matrix.reshape(shape), atol=1e-12)


def test_what_they_cannot_hold_is_refused_by_name(tmp_path):
    sources, out = random_adapters(1, (3, 4), SHAPES), tmp_path / "deltas.safetensors"
    with pytest.raises(UsageError, match=r"must end in \.safetensors"):
        lm.write_deltas(lm.plan(sources, "ties"), tmp_path / "folder")
    with pytest.raises(UsageError, match="total_rank shares ranks"):
        lm.write_deltas(lm.plan(sources, "ties", total_rank=9), out)
    with pytest.raises(UsageError, match="cosine"):
        lm.write_deltas(lm.plan(sources, "ties", scale="cosine"), out)
    expert = turned(sources[0][lm.Target("layers.0.q")], kind="expert", index=0, layout=Layout(blocks=2))
    with pytest.raises(IncompatibleError, match=r"m\[0\] is one of many updates of one parameter"):
        lm.write_deltas(lm.plan([expert], "linear"), out)
    huge = lm.Adapter.of({"q": lm.LowRank(np.full((2, 1), 1e5), np.ones((1, 2)))})
    with pytest.raises(IncompatibleError, match="does not fit float16"):
        lm.write_deltas(lm.plan([huge], "linear", dtype="float16"), out)
    assert list(tmp_path.iterdir()) == []


def test_on_the_command_line(tmp_path, capsys):
    sources = ["fixtures/a.safetensors", "fixtures/b.safetensors"]
    out = tmp_path / "deltas.safetensors"
    cli = Cli(capsys)
    again = ["combine", *sources, "--method", "ties", "--dense-delta", "-o", str(out)]
    assert cli(*again).code == 0
    assert len(load_file(out)) == 18
    with pytest.raises(SourceError, match="it is of dense deltas: combine --dense-delta"):
        lm.replay(out)
    assert cli(*again).code == 1
    assert cli(*again, "--overwrite", "--dry-run").code == 2
