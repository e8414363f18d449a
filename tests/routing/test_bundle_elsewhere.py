"""Other verbs and a bundle: check, combine, push, replay, inspect."""

from __future__ import annotations

import numpy as np
import pytest

import loramerge as lm
from loramerge.formats.files.safetensors import open_file
from tests.helpers.files import folder, tensors
from tests.hub.conftest import hub, login  # noqa: F401  fixtures
from tests.hub.loopback import files_of
from tests.routing import files
from tests.routing.test_route import A, B


@pytest.fixture
def pair(tmp_path):
    """Two adapters whose modules are in all layers from the first on."""
    return [folder(tmp_path / name, tensors(i)) for i, name in enumerate("ab")]


def test_check_says_that_peft_runs_an_arrow_bundle(cli, pair):
    cli("route", *pair, "-o", "bundle")
    done = cli("check", "bundle", "--for", "peft")
    assert done.code == 0, done.out
    assert "a routed bundle of 2 PEFT adapters" in done.out
    assert "loads it as it is meant" in done.out


def test_check_says_who_ignores_the_gate_and_who_loads_no_bundle(cli, pair):
    cli("route", *pair, "--gate", "spectr", "-o", "bundle")
    assert [f.effect for f in lm.check("bundle", "peft")] == ["ignores"]
    (found,) = lm.check("bundle", "vllm")
    assert found.effect == "rejects"
    assert "a bundle of 2 under a gate" in found.sentence
    assert cli("check", "bundle", "--for", "vllm").code == 3


def test_check_cannot_tell_what_peft_does_with_layers_that_lack_experts(cli, tmp_path):
    update = lm.LowRank(np.ones((4, 1), np.float32), np.ones((1, 4), np.float32))
    some = lm.Adapter.of({f"model.layers.{n}.self_attn.q_proj": update for n in (0, 2)}, "a")
    lm.route([some, some], out="bundle")
    assert [f.effect for f in lm.check("bundle", "peft")] == ["unknown"]
    assert cli("check", "bundle", "--for", "peft").code == 5


def test_a_static_bundle_is_merged_with_its_own_weights_or_with_others(cli):
    cli("route", A, B, "--gate", "static", "--weights", "0.7,-0.3", "-o", "bundle")
    for words, weights in (([], (0.7, -0.3)), (["--weights", "2,1"], (2, 1))):
        assert cli("combine", "bundle", *words, "-o", "m.safetensors", "--overwrite").code == 0
        wanted = lm.combine([A, B], weights=weights).adapter
        assert lm.diff("m.safetensors", wanted).error < 1e-6
    flat = lm.load_bundle("bundle").flat()
    assert lm.diff(flat, lm.combine([A, B], weights=(0.7, -0.3)).adapter).error < 1e-6


def test_another_bundle_is_not_merged_and_the_sentence_names_route(cli):
    cli("route", A, B, "-o", "bundle")
    cli("combine", "bundle").refused(3, "gate arrow", "loramerge route", "--gate static", "bundle/task_0")
    cli("resize", "bundle", "--rank", 2).refused(3, "gate arrow")
    assert cli("replay", "bundle").code == 1
    assert "it is a bundle, which loramerge route makes" in cli("replay", "bundle").err


def test_a_bundle_is_pushed_with_a_card(cli, hub, login):  # noqa: F811
    cli("route", A, B, "-o", "bundle")
    done = lm.push("bundle", "me/b")
    there = hub.repos["me/b"].files("main")
    card = there["README.md"].decode()
    assert {
        "router.safetensors",
        "task_1/adapter_config.json",
        "task_0/adapter_model.safetensors",
    } <= there.keys()
    assert card.startswith("---\n")
    assert "create_arrow_model" in card
    assert "hf download me/b" in card
    assert done.changed
    x = np.random.default_rng(0).standard_normal((3, 64))
    name = "model.layers.0.self_attn.q_proj"
    again = lm.load_bundle("me/b")
    assert np.array_equal(again.forward(name, x), lm.load_bundle("bundle").forward(name, x))
    with pytest.raises(lm.SourceError, match=r"no such|not|has no"):
        lm.load_bundle("me/none")
    assert not lm.push("bundle", "me/b").changed


def test_a_file_of_the_hub_with_its_own_gate_is_routed_as_one_that_lies_here(cli, hub, tmp_path):  # noqa: F811
    place, loop = files.meteora(tmp_path / "file")
    commit = hub.add("org/meteora", files_of(place))
    done = cli("route", "org/meteora", "-o", "bundle")
    assert done.code == 0, done.err
    bundle, x = lm.load_bundle("bundle"), np.random.default_rng(0).standard_normal((4, files.INS))
    wanted = np.stack([loop(files.PATHS[0], each) for each in x])
    assert np.abs(bundle.forward(files.PATHS[0], x) - wanted).max() < 1e-5 * np.abs(wanted).max()
    (said,) = bundle.record["imported"]
    here = lm.route([place], out="here").record["imported"][0]
    assert said == {**here, "name": "meteora", "hub": "org/meteora", "revision": commit}
    cli("combine", "org/meteora").refused(3, "org/meteora is of MeteoRA", "loramerge route org/meteora")


def test_what_is_wrong_with_a_file_of_the_hub_is_said_of_its_name_there(hub, tmp_path):  # noqa: F811
    place, _ = files.meteora(tmp_path / "file")
    weights = place / "adapter_model.safetensors"
    tensors = {key: t.read() for key, t in open_file(weights).tensors.items()}
    tensors.pop(f"{files.PREFIX}{files.PATHS[0]}.lora_B.weight")
    lost = files.save(tmp_path / "lost", tensors, {"ranks": [2, 5, 3], "lora_alpha": 16})
    hub.add("org/meteora", files_of(lost))
    with pytest.raises(lm.SourceError, match=r"^org/meteora lacks lora_B"):
        lm.route(["org/meteora"])


def test_restore_is_told_the_task_by_inputs_on_the_command_line_too(cli, pair):
    cli("combine", *pair, "--method", "mergevla", "-o", "merged")
    router = lm.load_router("merged")
    inputs = {name: np.ones((2, tensor.shape[1])) for name, tensor in router.directions.items()}
    np.savez("x.npz", **inputs)
    assert cli("restore", "merged", "--inputs", "x.npz", "--rank", 4, "-o", "told").code == 0
    assert cli("restore", "merged", "--task", router.choose(inputs), "--rank", 4, "-o", "named").code == 0
    assert lm.diff("told", "named").largest == 0
    cli("restore", "merged").refused(2, "--task", "--inputs")
    cli("restore", "merged", "--inputs", "x.txt").refused(2, "no .npz")
