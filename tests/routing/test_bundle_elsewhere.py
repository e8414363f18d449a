"""Other verbs and a bundle: check, combine, push, replay, inspect."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.formats.files.safetensors import open_file
from tests.helpers.files import folder, tensors
from tests.hub.conftest import hub, login  # noqa: F401  fixtures
from tests.hub.loopback import files_of
from tests.routing import files
from tests.routing.test_imports import MADE
from tests.routing.test_route import A, B


@pytest.fixture
def pair(tmp_path):
    """Two adapters whose modules are in all layers from the first on."""
    return [folder(tmp_path / name, steep(tensors(i))) for i, name in enumerate("ab")]


def steep(found):
    """With a first unit that is far stronger than the rest, so that 15 power iterations find it."""
    return {key: _first(array) if "lora_A" in key else array for key, array in found.items()}


def _first(down):
    return down * np.where(np.arange(len(down)) == 0, 9, 1)[:, None].astype(down.dtype)


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


def test_a_bundle_that_one_adapter_can_replace_says_so(cli):
    """In its README, and where a program does not load it; what it says works."""
    rows = {"ann": (1.0, 0.0)}
    for gate, more, words in (
        ("static", {}, "makes one adapter of it"),
        ("table", {"rows": rows}, "--row NAME"),
        ("spectr", {}, "No single adapter"),
    ):
        lm.route([A, B], gate, out=gate, **more)
        assert words in Path(gate, "README.md").read_text()
    lm.route([A], out="one")
    assert "of 1 LoRA adapter for " in Path("one/README.md").read_text()
    for name in ("static", "one"):
        assert {"loramerge combine" in each.mend for each in lm.check(name, "vllm")} == {True}
        assert cli("combine", name, "-o", f"{name}-merged").code == 0
    assert lm.diff("one-merged", A).error < 1e-6
    assert all("combine" not in each.mend for each in lm.check("spectr", "vllm"))


ONES = lm.LowRank(np.ones((4, 1), np.float32), np.ones((1, 4), np.float32))


def _of_layers(*names):
    some = lm.Adapter.of(dict.fromkeys(names, ONES), "a")
    return lm.route([some, some], out="bundle")


@pytest.mark.parametrize(
    ("layers", "effect", "code"), [((0, 1), "unknown", 5), ((0, 2), "rejects", 3), ((1,), "rejects", 3)]
)
def test_check_says_what_full_names_cost_and_the_mend_works(layers, effect, code, cli):
    """PEFT's router goes to every layer of a name; test_torch.py runs it."""
    names = [f"model.layers.{n}.self_attn.q_proj" for n in layers]
    _of_layers(*names)
    assert lm.check("bundle", "peft") == []
    for task in ("task_0", "task_1"):
        config = Path("bundle", task, "adapter_config.json")
        config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": names}))
    (found,) = lm.check("bundle", "peft")
    assert found.effect == effect
    assert "every layer called q_proj" in found.sentence
    assert cli("check", "bundle", "--for", "peft").code == code
    assert cli("route", "bundle", "--gate", "arrow", "-o", "other").code == 0
    assert lm.check("other", "peft") == []


def test_check_says_that_peft_cannot_tell_modules_called_by_a_number_apart(cli):
    _of_layers("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0")
    (found,) = lm.check("bundle", "peft")
    assert (found.effect, "to_out.0" in found.sentence) == ("rejects", True)


@pytest.mark.parametrize(("layers", "right"), [([[0, 2], [1, 3]], False), ([[0, 2]], True), ("x", False)])
def test_check_says_that_peft_repeats_layers_with_every_adapter(layers, right, tmp_path):
    """test_torch_layers.py runs it; a map that leaves what it takes may be applied twice."""
    pair = [folder(tmp_path / n, steep(tensors(i)), layer_replication=layers) for i, n in enumerate("ab")]
    lm.route(pair, out=tmp_path / "bundle")
    found = lm.check(tmp_path / "bundle", "peft")
    assert [each.effect for each in found] == ["ignores"] * (not right)
    assert all("repeats them anew" in each.sentence for each in found)


def test_check_judges_a_bundle_of_the_hub_by_its_headers(cli, hub, login, pair):  # noqa: F811
    """In a folder of its repository too; what fetches it is a command that works as it stands."""
    cli("route", *pair, "-o", "bundle")
    cli("route", *pair, "--gate", "spectr", "-o", "other")
    hub.add("me/b", files_of(Path("bundle")))
    hub.add("me/two", {f"sub/{name}": data for name, data in files_of(Path("other")).items()})
    assert lm.check("me/b", "peft") == lm.check("bundle", "peft") == []
    assert [each.effect for each in lm.check("hf://me/two/sub", "peft")] == ["ignores"]
    done = cli("check", "me/b", "--for", "peft")
    assert (done.code, "a routed bundle of 2 PEFT adapters" in done.out) == (0, True)
    asked = [each for each in hub.got("GET", "adapter_model.safetensors") if each.span is None]
    assert not asked, "only headers are read"
    cli("inspect", "hf://me/two/sub").refused(
        3, "hf download me/two '--include=sub/*' --local-dir there", "fetches it, into there/sub."
    )
    assert cli("route", "me/b", "--gate", "static", "-o", "even").code == 0
    assert lm.load_bundle("even").experts == lm.load_bundle("bundle").experts
    cli("route", "me/b", pair[0], "-o", "no").refused(3, "is a routed bundle")
    files = files_of(Path("bundle"))
    hub.add("me/none", {name: data for name, data in files.items() if name != "loramerge.json"})
    hub.add("me/damaged", {**files, "loramerge.json": b"{}"})
    for name in ("me/none", "me/damaged"):
        with pytest.raises(lm.SourceError, match=r"loramerge\.json"):
            lm.check(name, "peft")


def test_check_cannot_tell_of_names_that_convolutions_have_too(cli):
    _of_layers("visual.blocks.0.attn.proj", "visual.blocks.1.attn.proj")
    assert [(f.effect, "called proj" in f.sentence) for f in lm.check("bundle", "peft")] == [
        ("unknown", True)
    ]


def test_check_and_readme_say_how_many_directions_peft_misses(cli):
    """Two units of one strength have no strongest direction; a record without the number is not trusted."""
    even = lm.LowRank(np.eye(4, 2), np.eye(2, 4))
    steep = lm.LowRank(np.eye(4, 2) * [1.0, 0.5], np.eye(2, 4))
    name = "model.layers.0.self_attn.q_proj"
    lm.route([lm.Adapter.of({name: u}, n) for n, u in (("a", even), ("b", steep))], out="bundle")
    (found,) = lm.check("bundle", "peft")
    assert found.effect == "ignores"
    assert "1 of 2 that it finds point elsewhere" in found.sentence
    assert "1 of the 2 here are off" in Path("bundle/README.md").read_text()
    record = json.loads(Path("bundle/loramerge.json").read_text())
    del record["prototypes"]
    Path("bundle/loramerge.json").write_text(json.dumps(record))
    assert [each.effect for each in lm.check("bundle", "peft")] == ["unknown"]


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


REFUSED = [
    ("diff", "B", A),
    ("diff", A, "B"),
    ("convert", "B", "c.safetensors", "--to", "kohya"),
    ("resize", "B", "--rank", 2),
    ("fuse", A, "B"),
    ("extract", "B", "B/task_0"),
    ("report", "B", "-o", "r.html"),
    ("combine", "B"),
    ("combine", A, B, "--project-out", "B"),
    ("combine", A, B, "--base", "B"),
    ("route", A, "--subtract", "B"),
    ("route", A, "B"),
    ("restore", "B", "--task", "a"),
]


@pytest.mark.parametrize("words", REFUSED, ids=lambda words: f"{words[0]}-{words.index('B')}")
def test_every_other_verb_names_the_bundle_and_what_to_do(words, cli):
    if words[0] == "report":
        pytest.importorskip("altair")
    cli("route", A, B, "-o", "bundle")
    done = cli(*[str(each).replace("B", "bundle") if "B" in str(each)[:2] else each for each in words])
    assert done.code == 3, done.err
    assert "bundle is a routed bundle whose gate arrow" in done.err
    assert "loramerge route bundle --gate static" in done.err
    assert "bundle/task_0" in done.err


def test_a_page_of_a_bundle_with_rows_names_combine(cli):
    pytest.importorskip("altair")
    Path("rows.json").write_text(json.dumps({"ann": [1, 0]}))
    cli("route", A, B, "--gate", "table", "--table", "rows.json", "-o", "users")
    cli("report", "users", "-o", "r.html").refused(2, "loramerge combine users --row NAME")


def test_inspect_shows_a_bundle_as_a_whole_and_then_each_adapter_in_it(cli):
    cli("route", A, B, "--top-k", 1, "-o", "bundle")
    whole, *rest = cli("inspect", "bundle", "--json").json()["adapters"]
    assert whole["format"] == "routed bundle of 2 adapters"
    assert whole["settings"] == {"gate": "arrow", "top_k": 1, "temperature": 1.0}
    assert [each["name"] for each in rest] == ["bundle/task_0", "bundle/task_1"]
    assert "routed bundle of 2 adapters" in str(lm.inspect("bundle"))
    cli("inspect", "bundle/router.safetensors").refused(3, "router of a bundle", "bundle/task_0")


def test_a_row_of_a_bundle_is_a_merge(cli):
    """As its record says it, so that a replay needs no bundle's gate."""
    Path("rows.json").write_text(json.dumps({"ann": [1, 0], "bob": [0.25, -2]}))
    cli("route", A, B, "--gate", "table", "--table", "rows.json", "-o", "users")
    assert cli("combine", "users", "--row", "bob", "-o", "bob").code == 0
    wanted = lm.combine([A, B], weights=(0.25, -2)).adapter
    assert lm.diff("bob", wanted).error < 1e-6
    assert lm.diff(lm.combine(["users"], row="bob").adapter, wanted).error < 1e-6
    where = [word for e in (0, 1) for word in ("--source", f"task_{e}=users/task_{e}")]
    assert cli("replay", "bob", *where, "-o", "again").code == 0
    cli("route", A, B, "--gate", "task", "-o", "tasks")
    task = lm.combine(["tasks"], row="b.safetensors").adapter
    assert lm.diff(task, lm.combine([A, B], weights=(0, 1)).adapter).error < 1e-6
    cli("combine", "users").refused(2, "ann, bob", "loramerge combine users --row NAME")
    cli("combine", "users", "--row", "carl").refused(2, "no row carl", "ann, bob")
    cli("combine", A, "--row", "bob").refused(2, "--row bob is for bundles")
    cli("combine", "users", "--row", "bob", "--weights", "1,2").refused(2, "leave out --weights")
    cli("route", A, B, "-o", "bundle")
    cli("combine", "bundle", "--row", "bob").refused(2, "bundle has no rows")
    for sources in (["users"], [A]):
        with pytest.raises(lm.UsageError, match="row"):
            lm.combine(sources, row="bob", weights=[1.0, 2.0][: len(sources) + (sources == ["users"])])


def test_a_gate_that_treats_all_tokens_alike_is_merged_by_the_command(cli, tmp_path):
    """SMoRA with a uniform gate is plain LoRA; with any other, nothing is."""
    even, _ = files.smora(tmp_path / "even", chosen=8, uniform=True)
    done = cli("route", even, "-o", "bundle")
    assert "loramerge combine bundle" in done.err
    assert cli("combine", "bundle", "-o", "plain").code == 0
    assert lm.diff("plain", lm.load_bundle("bundle").flat()).error < 1e-6
    other, _ = files.smora(tmp_path / "other")
    assert "combine" not in cli("route", other, "-o", "other-bundle").err
    cli("combine", "other-bundle").refused(3, "gate rank-sigmoid")


@pytest.mark.parametrize("config", [{}, {"lora_alpha": None}])
@pytest.mark.parametrize("name", MADE)
def test_the_sentence_about_a_file_with_its_own_gate_is_a_command_that_works(name, config, cli, tmp_path):
    place, _ = MADE[name](tmp_path / "file")
    if config:
        path = place / "adapter_config.json"
        said = json.loads(path.read_text())
        del said["lora_alpha"]
        path.write_text(json.dumps(said))
    done = cli("combine", place)
    assert done.code == 3
    (command,) = re.findall(r"`loramerge (route [^`]*)`", done.err)
    assert ("--alpha A" in command) == bool(config)
    assert cli(*shlex.split(command.replace("--alpha A", "--alpha 16"))).code == 0
    assert len(lm.load_bundle("bundle")) == 2


ALIKE = {
    "smora": lambda place: files.smora(place, chosen=8, uniform=True),
    "smora with a bias": lambda place: files.smora(place, chosen=8, uniform=True, bias=0.25),
    "smora of its own type": lambda place: files.smora(place, chosen=8, uniform=True, peft_type="SRMOLE"),
    "smora of rsLoRA": lambda place: files.smora(place, chosen=8, uniform=True, use_rslora=True),
    "flylora": lambda place: files.flylora(place, chosen=8),
    "flylora with more than all": lambda place: files.flylora(place, chosen=99),
}


@pytest.mark.parametrize("name", ALIKE)
def test_a_file_whose_gate_lets_all_units_through_is_plain_lora_at_once(name, cli, tmp_path):
    place, _ = ALIKE[name](tmp_path / "even")
    assert cli("combine", place, "-o", "plain").code == 0
    wanted, x = lm.route([place]), np.random.default_rng(0).standard_normal((4, files.INS))
    for path in files.PATHS:
        found = x @ lm.load("plain")[path].dense().T
        assert np.allclose(found, wanted.forward(path, x), rtol=1e-5, atol=1e-5)
    assert "read as plain LoRA" in str(lm.load(place).oddities)
    assert not (tmp_path / "plain" / "router").exists()
    lm.convert(place, tmp_path / "copy", "peft")
    assert not [
        key for key in open_file(tmp_path / "copy" / "adapter_model.safetensors").tensors if "router" in key
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda place: files.smora(place, uniform=True),  # of all units only half are chosen
        lambda place: files.smora(place, chosen=8),
        lambda place: files.flylora(place, chosen=7),
    ],
)
def test_a_file_whose_gate_chooses_is_sent_to_route(make, cli, tmp_path):
    place, _ = make(tmp_path / "file")
    cli("combine", place).refused(3, "loramerge route")


def test_flylora_of_one_seed_becomes_one_flylora_without_being_told(cli, tmp_path):
    """What `route` makes of both; any other method names one command for all of them."""
    pair = [files.flylora(tmp_path / name, b_seed=seed)[0] for name, seed in (("one", 50), ("two", 60))]
    done = cli("combine", *pair, "-o", "m")
    assert done.code == 0, done.err
    assert "so is their merge" in done.err
    lm.combine(pair, out="python")
    x, wanted = np.random.default_rng(0).standard_normal((4, files.INS)), lm.route(pair)
    for place in ("m", "python"):
        for path in files.PATHS:
            assert np.allclose(lm.route([place]).forward(path, x), wanted.forward(path, x), atol=1e-5)
    refused = cli("combine", *pair, "--method", "ties")
    refused.refused(3, "makes one FlyLoRA of those of one seed")
    for command in re.findall(r"`loramerge ([^`]*)`", refused.err):
        assert cli(*shlex.split(command)).code == 0, command
    with pytest.raises(lm.IncompatibleError, match="--keep-form"):
        lm.combine(pair)
    for words in (["--only", "q"], ["--dtype", "float16"]):
        cli("combine", *pair, *words, "-o", "no").refused(3, "are of FlyLoRA", f"{words[0]} is not for")
    other, _ = files.flylora(tmp_path / "other", seed=9)
    cli("combine", pair[0], other, "-o", "no").refused(3, "different seeds", "loramerge route")
    strange, _ = files.meteora(tmp_path / "strange")
    cli("combine", pair[0], strange, "-o", "no").refused(3, "2 of the 2", "MeteoRA")
