"""Files whose numbers stand at the ends of float64, through every verb: right or a sentence, never a bug."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.consumers import CONSUMERS
from tests.fuzz.walk import Outcomes
from tests.helpers.files import folder, tensors
from tests.helpers.models import BF16, random_model, save_model

FARS = [1e20, 1e38, 1e75, 1e160, 1e300, 1e-20, 1e-45, 1e-75, 1e-160, 1e-310]
PLACES = {  # side of a factor, and alpha -> its power of the number
    "up": (1, 0, 0),
    "down": (0, 1, 0),
    "both": (1, 1, 0),
    "up against down": (1, -1, 0),
    "alpha": (0, 0, 1),
    "alpha against up": (-1, 0, 1),
}
MODULE = "model.layers.0.self_attn.q_proj"
SHAPES = {MODULE: (16, 16)}
VERBS = {
    "inspect": lambda: [str(lm.inspect("far")), lm.inspect("far").to_dict()],
    "diff": lambda: [str(lm.diff("far", "plain")), str(lm.diff("plain", "far")), str(lm.diff("far", "far"))],
    "check": lambda: [lm.check("far", name) for name in CONSUMERS],
    "convert": lambda: lm.convert("far", "c", "mlx", dtype="float32", overwrite=True),
    "resize": lambda: lm.resize("far", rank=1),
    "combine": lambda: str(lm.combine(["far", "plain"], out="out", overwrite=True)),
    "route": lambda: lm.route(["far", "plain"], out="r", overwrite=True, gate="arrow"),
    "deltas": lambda: lm.write_deltas(lm.plan(["far"]), "out.safetensors", overwrite=True),
    "fuse": lambda: lm.fuse("far", "base", "f", overwrite=True),
    "state dict": lambda: lm.to_state_dict(lm.load("far")),
    "save": lambda: lm.save(lm.load("far"), "out", overwrite=True),
    "extract": lambda: str(lm.extract("tuned", "base", rank=1, extras="drop")),
    "report": lambda: lm.report(["far", "plain"], methods=["svd", "ties"], out="page.html", overwrite=True),
}


def write(powers, far):
    """`far`, an adapter, and `tuned`, a model, with the number in them."""
    up, down, alpha = (np.float64(far) ** power for power in powers)
    values = {
        name: array * (up if "lora_B" in name else down)
        for name, array in tensors(0, shapes=SHAPES, dtype=np.float64).items()
    }
    folder(fresh("far"), values, lora_alpha=float(alpha) * 4)
    model, (left, right) = random_model(), values.values()
    save_model(fresh("tuned"), {**model, f"{MODULE}.weight": model[f"{MODULE}.weight"] + right @ left})


def fresh(name):
    shutil.rmtree(name, ignore_errors=True)
    return Path(name)


@pytest.fixture
def place_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "plain", tensors(1, shapes=SHAPES))
    save_model(tmp_path / "base", random_model())
    return tmp_path


def test_every_verb_runs_where_nothing_is_far(place_of):
    write(PLACES["up"], 1.0)
    drawn = all(map(find_spec, ("altair", "vl_convert")))
    for verb, act in VERBS.items():
        if drawn or verb != "report":  # a page is drawn by libraries that not all have
            act()


FEW = [1e38, 1e75, 1e160, 1e300, 1e-160, 1e-310]


@pytest.mark.parametrize("fars", [FEW, pytest.param(FARS, marks=pytest.mark.slow)], ids=["few", "all"])
@pytest.mark.parametrize("place", PLACES)
def test_a_verb(place, fars, place_of):
    found = Outcomes()
    for far in fars:
        with np.errstate(all="ignore"):
            write(PLACES[place], far)
        for verb, act in VERBS.items():
            if verb != "report" or fars is FARS:
                found.of(act, (verb, far))
    found.check()
    assert found.count["fine"]


def test_no_model_is_written_with_numbers_that_are_none(place_of):
    write(PLACES["up"], 1e38)
    save_model(place_of / "half", random_model(dtype=BF16))
    for base in ("base", "half"):
        with pytest.raises(lm.IncompatibleError, match=r"q_proj\.weight with the update does not fit"):
            lm.fuse("far", base, "out")
    assert not (place_of / "out").exists()
