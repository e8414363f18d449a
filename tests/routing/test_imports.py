"""Files that bring their own gate do in a bundle what their published formula does, as a loop over tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.formats.files.safetensors import Writer, open_file
from loramerge.formats.routers import ROUTED
from loramerge.routing.imports.names import SYSTEMS
from tests.routing import files
from tests.routing.files import INS, OUTS, PATHS, PREFIX, PROMPT
from tests.routing.samples import tokens

MADE = {
    "meteora": files.meteora,
    "loramoe": files.loramoe,
    "smora": files.smora,
    "lora-mixer": files.lora_mixer,
    "flylora": files.flylora,
}
every_system = pytest.mark.parametrize("name", MADE)


def rel(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def test_what_is_known_by_its_tensors_is_what_is_imported():
    assert {each.name for each in ROUTED} == SYSTEMS.keys()


@every_system
def test_a_file_does_in_a_bundle_what_its_formula_says(name, tmp_path):
    folder, loop = MADE[name](tmp_path / "file")
    bundle = lm.route([folder], out=tmp_path / "bundle")
    x = tokens(20, INS)
    for path in PATHS:
        wanted = np.stack([loop(path, each) for each in x])
        assert rel(bundle.forward(path, x), wanted) < 1e-6
    assert bundle.record["imported"][0]["system"] == name
    assert len(bundle.record["imported"][0]["sha256"]) == 2


@every_system
@pytest.mark.parametrize("verb", [lm.load, lambda f: lm.combine([f]), lambda f: lm.resize(f, rank=1)])
def test_every_static_way_refuses_it_and_names_route(name, verb, tmp_path):
    folder, _ = MADE[name](tmp_path / "file")
    with pytest.raises(lm.IncompatibleError, match="`loramerge route"):
        verb(folder)


@every_system
def test_a_missing_part_is_named(name, tmp_path):
    folder, _ = MADE[name](tmp_path / "file")
    weights = folder / "adapter_model.safetensors"
    tensors = {key: t.read() for key, t in open_file(weights).tensors.items()}
    gone = next(key for key in sorted(tensors) if ".lora_B" in key)
    del tensors[gone]
    weights.unlink()
    with Writer(weights, {k: ("F32", v.shape) for k, v in tensors.items()}, {}) as writer:
        for key, array in tensors.items():
            writer.write(key, array)
    part = gone.removeprefix(PREFIX).removesuffix(".weight").rpartition(".lora_B")[2]
    with pytest.raises(lm.SourceError, match=f"lacks lora_B{part}"):
        lm.route([folder], out=tmp_path / "bundle")


def test_meteora_of_unequal_ranks_must_say_them(tmp_path):
    folder, _ = files.meteora(tmp_path / "file")
    config = json.loads((folder / "adapter_config.json").read_text())
    del config["ranks"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(lm.SourceError, match="10 units for 3 experts"):
        lm.route([folder])


def test_a_file_with_a_gate_stands_alone(tmp_path):
    one, _ = files.meteora(tmp_path / "one")
    two, _ = files.loramoe(tmp_path / "two")
    with pytest.raises(lm.IncompatibleError, match="stands alone"):
        lm.route([one, two])
    with pytest.raises(lm.UsageError, match="brings its own gate"):
        lm.route([one, "fixtures/a.safetensors"])


def test_wavllm_goes_by_its_prompt_in_the_bundle_too(tmp_path):
    file, loop = files.wavllm(tmp_path / "wav.safetensors")
    bundle = lm.route([file], out=tmp_path / "bundle")
    x = tokens(6, INS)
    for target in bundle:
        wanted = np.stack([loop(str(target), each) for each in x])
        assert rel(bundle.forward(target, x, prompt=PROMPT), wanted) < 1e-6
    assert "1 tensors that are of the model itself are left behind" in bundle.notes
    shared = [n for n in open_router(tmp_path / "bundle") if n.startswith("shared.")]
    assert len(shared) == 5, "one adapter of the prompt, not one for each module"


def open_router(folder):
    return open_file(folder / "router.safetensors").tensors


def test_another_gate_may_take_the_place_of_the_trained_one(tmp_path):
    folder, _ = files.meteora(tmp_path / "file")
    bundle = lm.route([folder], "arrow", top_k=1)
    assert type(bundle.gate).__name__ == "Arrow"
    assert bundle.forward(PATHS[0], tokens(2, INS)).shape == (2, OUTS)
