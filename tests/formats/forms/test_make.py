"""The committed fixtures are what their script makes, and are read as their oracles say."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import loramerge as lm
from loramerge.adapters.adapter import Held
from loramerge.formats.forms.form import Given, Layer
from loramerge.formats.forms.table import FORMS, update
from tests.formats.forms.make import HERE, SYSTEMS, TYPES, cases, folder_of, module_of, oracle, save_peft
from tests.formats.forms.samples import SAMPLES
from tests.formats.forms.test_laws import dense, held

MOST = 1_000_000  # bytes of all of them
FEW = ("VERA, drawn", "RANDLORA", "DoRA", "SHIRA")  # of PEFT's types, each with another way of drawing


def stored(form):
    """Word -> its tensors by name, and what the header says of it."""
    with safe_open(HERE / "forms" / f"{form}.safetensors", "np") as file:
        said = json.loads(file.metadata()["cases"])
        named = {key: file.get_tensor(key) for key in file.keys()}
    return {
        word: ({k.removeprefix(f"{word}/"): v for k, v in named.items() if k.startswith(f"{word}/")}, told)
        for word, told in said.items()
    }


def under(tensors, what):
    return {
        key.removeprefix(f"{what}/"): value for key, value in tensors.items() if key.startswith(f"{what}/")
    }


def test_every_form_has_a_fixture_and_all_are_small():
    assert {path.stem for path in (HERE / "forms").iterdir()} == set(FORMS)
    assert {path.name for path in (HERE / "saved").iterdir()} == set(map(folder_of, TYPES))
    assert {path.name for path in (HERE / "systems").iterdir()} == set(SYSTEMS)
    assert sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file()) < MOST


@pytest.mark.parametrize("form", [form for form in SAMPLES if form != "psoft" or find_spec("torch")])
def test_a_module_is_read_as_its_oracle_says(form):
    for word, (tensors, said) in stored(form).items():
        layer = {key: Held(value) for key, value in under(tensors, "layer").items()}
        size = tensors["layer/weight"].shape if layer else said["size"]
        whole = None
        if FORMS[form].needs != "file":
            whole = Layer(tuple(size), layer.get("weight"), layer.get("bias"), tuple(said["kernel"]))
        shared, known = held(under(tensors, "shared")), {"m": whole} if whole else {}
        given = Given("m in f", said["config"], said["rank"], said["scale"], "m", shared, known, "base")
        found = dense(update(held(under(tensors, "part")), given, said["naming"]))
        wanted = tensors["wanted"]
        within = 1e-5 if form == "psoft" else 1e-6  # a float32 SVD is another one on another processor
        np.testing.assert_allclose(found, wanted, rtol=0, atol=within * np.abs(wanted).max(), err_msg=word)


@pytest.mark.parametrize("form", SAMPLES)
def test_its_tensors_are_those_that_the_script_makes_and_the_header_names_the_oracle(form):
    made = dict(cases(form))
    assert made.keys() == stored(form).keys()
    for word, (tensors, said) in stored(form).items():
        again = module_of(made[word])
        assert again.keys() | {"wanted"} == tensors.keys()
        assert all(np.array_equal(again[key], tensors[key]) for key in again)
        assert said["oracle"] == oracle(made[word])


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in TYPES
])  # fmt: skip
def test_what_peft_saves_is_what_is_committed(name, tmp_path):
    for package in ("torch", "peft"):
        pytest.importorskip(package)
    save_peft(tmp_path, name)
    for path in (tmp_path / "saved" / folder_of(name)).glob("*.safetensors"):
        found, kept = load_file(path), load_file(HERE / "saved" / folder_of(name) / path.name)
        assert found.keys() == kept.keys()
        for key, value in kept.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_file_of_a_system_is_read_as_its_forward_pass_says(name):
    said = {} if name == "clip_lora" else {"alpha": 4}
    adapter = lm.load(HERE / "systems" / name / "adapter.safetensors", **said)
    wanted = load_file(HERE / "systems" / name / "wanted.safetensors")
    assert {str(target) for target in adapter} == set(wanted)
    for target, change in adapter.items():
        np.testing.assert_allclose(change.dense(), wanted[str(target)], rtol=1e-9, atol=1e-9)
    tensors, _, again = SYSTEMS[name](np.random.default_rng(7))
    kept = load_file(HERE / "systems" / name / "adapter.safetensors")
    assert all(np.array_equal(kept[key], value) for key, value in tensors.items())
    assert all(np.allclose(wanted[key], value) for key, value in again.items())
