"""Every field of a config, a record and a recipe with every wrong value: a sentence, never a bug."""

import json
import shutil

import pytest

import loramerge as lm
from loramerge.consumers import CONSUMERS
from loramerge.merge.planner import planned
from loramerge.request.recipe_text import read
from tests.fuzz.walk import FEW, TAGS, WRONG, Outcomes, paths, put
from tests.helpers.files import folder, tensors

MANY = pytest.mark.parametrize(
    "wrong", [FEW, pytest.param(WRONG, marks=pytest.mark.slow)], ids=["few", "all"]
)
SETTINGS = {
    "use_dora",
    "fan_in_fan_out",
    "init_lora_weights",
    "use_rslora",
    "lora_bias",
    "layer_replication",
    "layers_pattern",
    "layers_to_transform",
    "exclude_modules",
    "init_r",
    "task_type",
    "revision",
    "peft_type",
    "base_model_name_or_path",
    "arrow_config",
    "trainable_token_indices",
    "enable_lora",
    "modules_to_save",
    "alora_invocation_tokens",
    "target_parameters",
    "target_modules",
    "bias",
    "rank_pattern",
    "alpha_pattern",
    "r",
    "lora_alpha",
    "num_layers",
    "lora_parameters",
    "fine_tune_type",
    "auto_mapping",
}


@pytest.fixture(autouse=True)
def sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = {"rank_pattern": {"q": 2}, "alpha_pattern": {"v": 3}, "target_modules": ["q"]}
    for seed, name in enumerate("ab"):
        folder(tmp_path / name, tensors(seed), **said)


@MANY
def test_a_config(tmp_path, wrong):
    shutil.copytree("a", "c")
    config, found = json.loads((tmp_path / "a/adapter_config.json").read_text()), Outcomes()
    programs = sorted(CONSUMERS)
    for turn, key in enumerate(sorted(SETTINGS)):
        for step, value in enumerate(wrong):
            text = json.dumps({**config, key: value})
            (tmp_path / "c/adapter_config.json").write_text(text)
            found.of(lambda: lm.combine(["c", "b"], "svd", rank=1, threads=1), (key, value))
            at = (turn + step) % len(programs)  # in turn; all of them about each value with -m slow
            for consumer in programs if wrong is WRONG else programs[at : at + 1]:
                found.of(lambda name=consumer: lm.check("c", name), (key, value, consumer))
    found.check()


def recorded(tmp_path):
    lm.combine(
        ["a", "b"],
        "lego",
        rank=2,
        weights=[0.5, 1],
        only="layers",
        profile="compact",
        out="m",
        rules=[lm.Rule("q", rank=1)],
    )
    record = json.loads((tmp_path / "m/loramerge.json").read_text())
    record.pop("report", None)
    return record


def chosen(tmp_path):
    """The record of a method that was given similarities."""
    said = {"a": "Writes poems in rhyme.", "b": "Counts words and letters."}
    lm.combine(["a", "b"], "sg", describe="poems and words", descriptions=said, out="m")
    record = json.loads((tmp_path / "m/loramerge.json").read_text())
    record.pop("report", None)
    record["settings"]["left_out"] = {"z": 0.5}
    return record


@MANY
@pytest.mark.parametrize("make", [recorded, chosen])
def test_a_record(tmp_path, wrong, make):
    record, found = make(tmp_path), Outcomes()
    for path in paths(record):
        for value in wrong:
            (tmp_path / "r.json").write_text(json.dumps(put(record, path, value)))
            found.of(lambda: lm.replay("r.json", threads=1), (path, value))
    found.check()


RECIPE = {
    "sources": [
        {"source": "a", "weight": 0.5, "revision": None},
        {"source": "b", "weight": {"from": 0.5, "to": 1}},
    ],
    "method": "svd",
    "parameters": {"rank": 2},
    "modules": [{"match": "q", "weights": [1, 2], "rank": 1}],
    "only": "l",
    "exclude": "zz",
    "alpha": {"a": 1},
    "allow_base_mismatch": True,
    "extras": "first",
    "renormalise": False,
    "format": "peft",
    "descriptions": {"a": "x"},
    "embedding": "tfidf",
    "dtype": "float32",
    "profile": "compact",
    "for": "peft",
    "max_rank": 8,
    "scale": "norm",
    "max_error": 0.5,
}


@MANY
def test_a_recipe(tmp_path, wrong):
    found, place = Outcomes(), tmp_path / "r.yaml"
    found.of(lambda: planned(read(place)), "none")
    for path in paths(RECIPE):
        made = [(value, json.dumps(put(RECIPE, path, value))) for value in wrong]
        made += [(tag, json.dumps(put(RECIPE, path, "@@")).replace('"@@"', tag)) for tag in TAGS]
        for value, text in made:
            place.write_text(text)
            found.of(lambda: planned(read(place)), (path, value))
    found.check()


NAMES = [
    "a" * 300,
    "a/" * 3000,
    "nul\0",
    "\ud800",
    b"\xff\xfe".decode("utf-8", "surrogateescape"),
    "a\tb",
    "\x1b[31m",
    "",
]
HUB = [
    f"hf://{name}"
    for name in ("collections/o/a\tb", "collections/a", "o/n@\x1b", "?x\ty=1", "//", "o/n/../x")
]


@pytest.mark.parametrize("name", [*NAMES, *HUB], ids=lambda name: ascii(name)[:40])
def test_a_name(tmp_path, name):
    """Wherever it stands: as a source, a list, a record, a recipe, an output."""
    found = Outcomes()
    acts = {
        "load": lambda: lm.load(name),
        "combine": lambda: lm.combine([name]),
        "glob": lambda: lm.combine([f"{name}*"]),
        "list": lambda: lm.combine([f"@{name}"]),
        "replay": lambda: lm.replay(name),
        "recipe": lambda: read(tmp_path / name),
        "inspect": lambda: lm.inspect(name),
        "check": lambda: lm.check(name, "peft"),
        "convert": lambda: lm.convert(name, "x", "peft"),
        "initial": lambda: lm.combine(["a"], initial={"a": name}),
        "embedding": lambda: lm.combine(["a", "b"], "sg", describe="x", embedding=f"{name}.npz"),
    }
    if not name.startswith("hf://"):
        acts["out"] = lambda: lm.combine(["a"], out=name)
    for told, act in acts.items():
        found.of(act, told)
    found.check()
