"""The compact profile: every module at its own rank and scale 1, for us, for PEFT and in a replay."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import SourceError, UsageError
from tests.helpers.files import SHAPES, content, folder, read, tensors

RANKS = dict(zip(SHAPES, (1, 2, 3, 3), strict=True))
RULES = [lm.Rule(f"^{path.replace('.', '[.]')}$", rank=rank) for path, rank in RANKS.items()]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        folder(tmp_path / name, tensors(seed, 2))


def both(**options):
    """The same merge in either profile, as a folder and as a bare file."""
    merges = {}
    for profile in ("portable", "compact"):
        for out in (profile, f"{profile}.safetensors"):
            merges[out] = lm.combine(["a", "b"], "svd", rules=RULES, profile=profile, out=out, **options)
    return merges


def test_both_profiles_hold_the_same_updates():
    merges = both(dtype="float64")
    portable = merges.pop("portable").adapter
    for merge in merges.values():
        for target in portable:
            assert merge.adapter[target].scale == 1.0
            assert np.array_equal(merge.adapter[target].dense(), portable[target].dense())


def test_the_config_says_the_usual_rank_and_names_the_others_exactly(tmp_path):
    both()
    config = json.loads((tmp_path / "compact/adapter_config.json").read_text())
    named = {r"^layers\.0\.q": 1, r"^layers\.0\.v": 2}
    assert (config["r"], config["lora_alpha"]) == (3, 3)
    assert config["rank_pattern"] == config["alpha_pattern"] == named
    header = json.loads(json.loads(_header(tmp_path / "compact.safetensors"))["__metadata__"]["loramerge"])
    assert header["config"]["rank_pattern"] == named
    assert header["settings"]["profile"] == "compact"


def _header(path):
    data = path.read_bytes()
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


def test_nothing_is_padded(tmp_path):
    both()
    for path in (tmp_path / "compact.safetensors", tmp_path / "compact" / WEIGHTS):
        for name, value in read(path).items():
            rank = RANKS[name.removeprefix("base_model.model.").split(".lora_")[0]]
            assert value.shape[0 if ".lora_A" in name else 1] == rank
            assert value.any(axis=1 if ".lora_A" in name else 0).all()


def test_a_module_whose_name_ends_another_keeps_its_own_rank():
    shapes = {"q": (6, 5), "x.q": (6, 5), "x.q.q": (6, 5), "xq": (6, 5), "x-q": (6, 5)}
    folder_ranks = {path: i + 1 for i, path in enumerate(shapes)}

    folder(
        Path("c"),
        tensors(0, folder_ranks, shapes),
        rank_pattern={f"^{re.escape(path)}": rank for path, rank in folder_ranks.items()},
    )
    merge = lm.combine(["c"], profile="compact", out="d")
    assert {t.path: slot.rank for t, slot in merge.adapter.slots.items()} == folder_ranks
    assert {merge.adapter[t].scale for t in merge.adapter} == {1.0}


@pytest.mark.parametrize("out", ["m", "m.safetensors"])
def test_a_replay_writes_the_same_bytes(tmp_path, out):
    lm.combine(["a", "b"], "svd", rules=RULES, profile="compact", out=out)
    lm.replay(out, f"again{out[1:]}")
    assert content(tmp_path / out) == content(tmp_path / f"again{out[1:]}")


def test_one_rank_needs_no_patterns():
    merge = lm.combine(["a", "b"], "svd", rank=2, profile="compact", out="m")
    plain = lm.combine(["a", "b"], "svd", rank=2, out="n")
    assert merge.adapter.config == plain.adapter.config


def test_another_profile_is_refused():
    with pytest.raises(UsageError, match="profile='small' is not one of portable, compact"):
        lm.combine(["a"], profile="small")


def test_the_command_line_and_a_recipe_know_it(cli, tmp_path):
    assert cli("combine", "a", "b", "--profile", "compact", "--print-recipe").code == 0
    (tmp_path / "r.yaml").write_text(cli.out + "modules: [{match: 'q$', rank: 1}]\n")
    assert cli("combine", "--recipe", "r.yaml", "-o", "m").code == 0
    assert "ranks 1 to 4" in cli.err
    assert "llama.cpp would scale them wrongly" in cli.err
    assert json.loads((tmp_path / "m/loramerge.json").read_text())["settings"]["profile"] == "compact"


RANKS_OF_STRANGERS = {
    "a module that is not there": ({"x": 1}, "ranks has x, which is not a module here"),
    "no number": ({"layers.0.q": True}, "the rank of layers.0.q is True"),
    "nothing": ({"layers.0.q": 0}, "the rank of layers.0.q is 0"),
    "no table": ([1], "ranks is .*, not a table"),
}


@pytest.mark.parametrize(("ranks", "words"), RANKS_OF_STRANGERS.values(), ids=RANKS_OF_STRANGERS)
def test_a_record_whose_ranks_cannot_be_is_refused(tmp_path, ranks, words):
    lm.combine(["a", "b"], "svd", total_rank=7, profile="compact", out="m")
    path = tmp_path / "m/loramerge.json"
    record = json.loads(path.read_text())
    assert sum(record["settings"]["ranks"].values()) == 7
    record["settings"]["ranks"] = ranks
    path.write_text(json.dumps(record))
    with pytest.raises(SourceError, match=words):
        lm.replay("m")
