"""Files that bring their own gate, and bundles, with wrong shapes and wrong values in each field."""

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.formats.files.safetensors import Writer, open_file
from loramerge.routing.imports.names import SYSTEMS
from tests.fuzz.walk import FEW, WRONG, Outcomes, paths, put
from tests.helpers.files import folder, tensors
from tests.routing import files

SHAPES = [(), (0,), (3,), (0, 9), (9, 0), (1, 1), (2, 2, 2), (40, 9), (9, 40)]
SETTINGS = {"lora_alpha", "use_rslora", "temperature", "top_k", "ranks", "activate_r", "task_type"}
MANY = pytest.mark.parametrize(
    "wrong", [FEW, pytest.param(WRONG, marks=pytest.mark.slow)], ids=["few", "all"]
)


def dmoerm(place):
    """Two tasks beside the head of a reward model."""
    values = {f"q.lora_A.{task}.weight": files.numbers(1, 3, 9) for task in "xy"}
    values |= {f"q.lora_B.{task}.weight": files.numbers(2, 9, 3) for task in "xy"}
    return files.save(place, {**values, "base_value_head.weight": files.numbers(3, 1, 4)}, {"lora_alpha": 4})


MADE = {
    "meteora": lambda place: files.meteora(place)[0],
    "loramoe": lambda place: files.loramoe(place, count=2)[0],
    "smora": lambda place: files.smora(place)[0],
    "lora-mixer": lambda place: files.lora_mixer(place, ranks=(2, 3))[0],
    "flylora": lambda place: files.flylora(place)[0],
    "wavllm": lambda place: files.wavllm(place.with_suffix(".safetensors"))[0],
    "dmoerm": dmoerm,
}


def written(place, values):
    place.unlink()
    with Writer(place, {key: ("F32", each.shape) for key, each in values.items()}, {}) as writer:
        for key, each in values.items():
            writer.write(key, each)


def routed(place):
    bundle = lm.route([place])
    for target in bundle:
        bundle.read(target)


def test_every_system_is_made():
    assert MADE.keys() == SYSTEMS.keys()


@pytest.mark.parametrize("name", MADE)
def test_a_file_with_a_gate(tmp_path, name):
    """Each tensor gone or of another shape; so for one module, and for all that are called alike."""
    source, found = MADE[name](tmp_path / "file"), Outcomes()
    weights = source if source.is_file() else source / "adapter_model.safetensors"
    good = {key: np.array(each.read()) for key, each in open_file(weights).tensors.items()}
    found.of(lambda: routed(source), "as it was")
    assert found.count["fine"]
    ends = {key: key.removeprefix(files.PREFIX).rpartition("_proj.")[2] for key in good}
    for end in sorted({*good, *ends.values()}):
        alike = [key for key in good if end in (key, ends[key])]
        for shape in SHAPES:
            written(weights, {**good, **dict.fromkeys(alike, np.ones(shape, np.float32))})
            found.of(lambda: routed(source), (end, shape))
        written(weights, {key: each for key, each in good.items() if key not in alike})
        found.of(lambda: routed(source), (end, "gone"))
    found.check()


@MANY
@pytest.mark.parametrize("name", sorted(MADE.keys() - {"wavllm"}))
def test_its_config(tmp_path, name, wrong):
    place, found = MADE[name](tmp_path / "file") / "adapter_config.json", Outcomes()
    said = json.loads(place.read_text())
    for key in sorted({*said, *SETTINGS}):
        for value in wrong:
            place.write_text(json.dumps({**said, key: value}))
            found.of(lambda: routed(place.parent), (key, value))
    found.check()


GATES = {"arrow": {}, "static": {}, "task": {}, "table": {"rows": {"a": [1, 0.5], "b": [0, 1]}}}


@pytest.mark.parametrize(
    "wrong", [[True, 10**400, [[]]], pytest.param(WRONG, marks=pytest.mark.slow)], ids=["few", "all"]
)
@pytest.mark.parametrize("gate", GATES)
def test_a_bundle(tmp_path, monkeypatch, gate, wrong):
    """Its record and the settings of an expert, for whoever reads a bundle."""
    monkeypatch.chdir(tmp_path)
    names = [folder(tmp_path / name, tensors(i, shapes={"q": (4, 4)})) for i, name in enumerate("ab")]
    lm.route(names, gate, out="bundle", **GATES[gate])
    acts = {
        "read": lambda: [str(lm.load_bundle("bundle").read(t)) for t in lm.load_bundle("bundle")],
        "check": lambda: [lm.check("bundle", name) for name in ("peft", "vllm")],
        "replay": lambda: lm.replay("bundle"),
        "inspect": lambda: str(lm.inspect("bundle")),
        "route": lambda: lm.route(["bundle"], "arrow"),
        "combine": lambda: lm.combine(["bundle"], "linear"),
        "row": lambda: lm.combine(["bundle"], "linear", row="a"),
    }
    if wrong is not WRONG:
        acts = {told: acts[told] for told in ("read", "check", "combine", "row")}
    found = Outcomes()
    record = json.loads((tmp_path / "bundle/loramerge.json").read_text())
    config = next((tmp_path / "bundle").glob("*/adapter_config.json"))
    files_of = {tmp_path / "bundle/loramerge.json": record, config: json.loads(config.read_text())}
    for place, said in files_of.items():
        for path in paths(said):
            if gate == "arrow" or path[:1] in [("gate",), ("gates",), ("experts",)]:
                for value in wrong:
                    place.write_text(json.dumps(put(said, path, value)))
                    for told, act in acts.items():
                        found.of(act, (told, path, value))
        place.write_text(json.dumps(said))
    found.check()


def test_layers_that_a_config_repeats_without_end(tmp_path):
    """A list of 10¹² layers is not made."""
    names = [folder(tmp_path / name, tensors(i, shapes={"q": (4, 4)})) for i, name in enumerate("ab")]
    lm.route(names, out=tmp_path / "bundle")
    for place in (tmp_path / "bundle").glob("*/adapter_config.json"):
        place.write_text(json.dumps({**json.loads(place.read_text()), "layer_replication": [[0, 10**12]]}))
    (found,) = [each for each in lm.check(tmp_path / "bundle", "peft") if "repeats them" in each.sentence]
    assert found.effect == "ignores"
