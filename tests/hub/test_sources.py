"""Adapters of the Hub are read as those on the disk are, and recorded with their commit."""

import json
import re
import threading

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import IncompatibleError, SourceError
from loramerge.hub.progress import Counter, Stopped
from loramerge.request.recipe import Ingredient
from loramerge.sources.open import opened
from tests.helpers.files import bare, content, folder, tensors
from tests.hub.loopback import ELSEWHERE, files_of

CARD = b"---\nlicense: mit\nbase_model: tiny\n---\n# a\n"
SAID = {"lora_adapter_metadata": '{"r": 2, "lora_alpha": 2}'}


@pytest.fixture
def a(hub, tmp_path):
    """`org/a` there, and the same folder here; the commit."""
    files = files_of(folder(tmp_path / "a", tensors(1)))
    return hub.add("org/a", {**files, "README.md": CARD, "optimizer.pt": b"x" * 5000, "train.log": b"y"})


def equal(one, other):
    assert lm.diff(one, other).largest < 1e-12  # a scale folded in is rounded once


WAYS = {
    "its name": "org/a",
    "at a branch": "org/a@main",
    "in full": "hf://org/a",
    "in full, at a branch": "hf://org/a@main",
}


@pytest.mark.parametrize("source", WAYS.values(), ids=WAYS)
def test_an_adapter_of_the_hub_is_the_one_that_was_put_there(hub, a, tmp_path, source):
    adapter = lm.load(source)
    equal(adapter, tmp_path / "a")
    assert adapter.provenance.revision == a
    assert adapter.provenance.hub == "org/a"
    assert adapter.provenance.licence == "mit"
    assert adapter.provenance.sha256() == lm.load(tmp_path / "a").provenance.sha256()


def test_only_what_is_needed_is_downloaded(hub, a, tmp_path):
    lm.load("org/a")
    got = {path.rpartition("/")[2] for path in content(tmp_path / "cache/models--org--a/snapshots")}
    assert got == {"adapter_config.json", "adapter_model.safetensors", "README.md"}


def test_a_commit_in_the_cache_makes_no_request(hub, a):
    first = lm.load(f"org/a@{a}")
    asked = len(hub.asked)
    equal(lm.load(f"hf://org/a@{a}"), first)
    assert len(hub.asked) == asked


def test_a_branch_is_looked_up_and_what_is_cached_is_not_downloaded_again(hub, a):
    lm.load("org/a")
    before = len(hub.got("GET", "/lfs/"))
    assert before == 1
    lm.load("org/a")
    assert len(hub.got("GET", "/lfs/")) == before


def test_offline_the_cache_has_what_was_fetched(hub, a, offline, tmp_path):
    lm.load("org/a")
    asked = len(hub.asked)
    offline()
    for source in ("org/a", "hf://org/a@main", f"org/a@{a}"):
        adapter = lm.load(source)
        equal(adapter, tmp_path / "a")
        assert adapter.provenance.revision == a
        assert adapter.oddities == ()
    assert len(hub.asked) == asked


def test_a_hub_that_is_down_is_told_and_the_cache_is_used(hub, a, tmp_path):
    lm.load("org/a")
    hub.status["/api/models/org/a"] = 503
    adapter = lm.load("org/a")
    equal(adapter, tmp_path / "a")
    assert adapter.oddities == (
        f"the Hub could not be asked, so this is the commit {a[:8]} that the cache has",
    )


def test_a_moved_branch_is_the_new_commit_and_the_old_one_can_be_named(hub, a, tmp_path):
    lm.load("org/a")
    new = hub.add("org/a", files_of(folder(tmp_path / "b", tensors(2))))
    equal(lm.load("org/a"), tmp_path / "b")
    equal(lm.load(f"org/a@{a}"), tmp_path / "a")
    assert lm.load("org/a").provenance.revision == new != a


def test_a_folder_of_a_repository(hub, tmp_path):
    files = files_of(folder(tmp_path / "a", tensors(1)))
    hub.add("org/many", {f"x/{name}": data for name, data in files.items()} | {"README.md": CARD})
    adapter = lm.load("hf://org/many/x")
    equal(adapter, tmp_path / "a")
    assert (adapter.name, adapter.provenance.hub, adapter.provenance.licence) == (
        "org/many/x",
        "org/many/x",
        "mit",
    )
    with pytest.raises(
        SourceError, match=r"holds adapters in folders \(x\): name one, such as hf://org/many/x"
    ):
        lm.load("org/many")


def test_a_repository_of_one_file(hub, tmp_path):
    path = bare(tmp_path / "style.safetensors", tensors(1), SAID)
    hub.add("org/style", {"style.safetensors": path.read_bytes(), "preview.png": b"p"})
    adapter = lm.load("org/style")
    equal(adapter, path)
    assert adapter.provenance.hub == "org/style/style.safetensors"
    equal(lm.load("hf://org/style/style.safetensors"), path)


def test_of_several_files_one_must_be_named(hub, tmp_path):
    one, two = (bare(tmp_path / f"{n}.safetensors", tensors(n), SAID).read_bytes() for n in (1, 2))
    hub.add("org/two", {"one.safetensors": one, "two.safetensors": two})
    with pytest.raises(SourceError) as error:
        lm.load("org/two")
    assert "2 files of weights (one.safetensors, two.safetensors)" in str(error.value)
    assert str(error.value).endswith("such as hf://org/two/one.safetensors")
    equal(lm.load("hf://org/two/two.safetensors"), tmp_path / "2.safetensors")


def test_odd_names_of_files_are_shown_harmlessly(hub, tmp_path, cli):
    data = bare(tmp_path / "x.safetensors", tensors(1), SAID).read_bytes()
    hub.add("org/odd", {"\x1b[31m.safetensors": data, "b\n.safetensors": data})
    cli("combine", "org/odd").refused(1, "2 files of weights", "\\x1b[31m.safetensors")
    hub.add("org/one", {"b\n.safetensors": data})
    assert cli("inspect", "org/one", "--download").code in (0, 1)
    assert all(line.isprintable() for line in (cli.out + cli.err).splitlines())
    hub.add("org/up", {"../up.safetensors": data, "/abs.safetensors": data})
    cli("combine", "org/up").refused(1, "org/up")


def test_a_config_beside_several_files_is_not_taken_for_the_one_that_is_named(hub, tmp_path):
    files = files_of(folder(tmp_path / "a", tensors(1)))
    weights = files["adapter_model.safetensors"]
    config = files["adapter_config.json"]
    hub.add("org/two", {"adapter_config.json": config, "x.safetensors": weights, "y.safetensors": weights})
    with pytest.raises(IncompatibleError, match="does not say its alpha"):
        lm.load("hf://org/two/x.safetensors")
    hub.add("org/one", {"adapter_config.json": config, "x.safetensors": weights})
    equal(lm.load("hf://org/one/x.safetensors"), tmp_path / "a")


def test_a_pickle_is_not_even_downloaded_unless_it_is_allowed(hub, tmp_path):
    files = files_of(folder(tmp_path / "a", tensors(1)))
    hub.add(
        "org/old", {"adapter_config.json": files["adapter_config.json"], "adapter_model.bin": b"p" * 2000}
    )
    for source in ("org/old", "hf://org/old/adapter_model.bin"):
        with pytest.raises(IncompatibleError, match=r"has its weights in a pickle only .* allow_pickle=True"):
            lm.load(source)
    assert not hub.got("GET", "/lfs/")
    with pytest.raises(SourceError, match="org/old"):  # it is none, which only reading it can tell
        lm.load("org/old", allow_pickle=True)
    assert hub.got("GET", "/lfs/")


def test_an_adapter_of_another_tool_is_told_by_its_reader(hub, tmp_path):
    path = bare(tmp_path / "adapters.safetensors", tensors(1))
    config = b'{"fine_tune_type": "lora", "lora_parameters": {"rank": 2}}'
    hub.add("org/mlx", {"adapters.safetensors": path.read_bytes(), "adapter_config.json": config})
    with pytest.raises(IncompatibleError, match="org/mlx mixes names of mlx-lm with those of PEFT"):
        lm.load("org/mlx")


def test_an_alpha_may_be_given_by_any_name_of_the_source(hub, tmp_path):
    path = bare(tmp_path / "x.safetensors", tensors(1))
    hub.add("org/x", {"x.safetensors": path.read_bytes()})
    wanted = lm.combine([path], alpha=8).adapter
    for name in ("org/x", "x", "hf://org/x"):
        source = name if "/" in name else "org/x"
        equal(lm.combine([source], alpha={name: 8}).adapter, wanted)


def test_a_merge_records_commit_place_and_licence(hub, a, tmp_path):
    lm.combine(["org/a", tmp_path / "a"], weights=[1, 2], out=tmp_path / "m")
    one, two = json.loads((tmp_path / "m/loramerge.json").read_text())["sources"]
    assert (one["hub"], one["revision"], one["licence"]) == ("org/a", a, "mit")
    assert one["sha256"] == two["sha256"]
    assert not {"hub", "licence"} & two.keys()


def test_a_replay_fetches_the_commit_of_then(hub, a, tmp_path, monkeypatch):
    lm.combine(["org/a"], weights=[0.5], out=tmp_path / "m")
    hub.add("org/a", files_of(folder(tmp_path / "b", tensors(2))))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "a").rename(tmp_path / "elsewhere/hidden")
    merge = lm.replay(tmp_path / "m", tmp_path / "again")
    assert lm.diff(tmp_path / "m", merge.adapter).largest == 0
    assert content(tmp_path / "again") == content(tmp_path / "m")


def test_a_replay_does_not_take_other_bytes_from_the_hub(hub, a, tmp_path):
    lm.combine(["org/a"], out=tmp_path / "m")
    record = json.loads((tmp_path / "m/loramerge.json").read_text())
    new = hub.add("org/a", files_of(folder(tmp_path / "b", tensors(2))))
    record["sources"][0]["revision"] = new
    (tmp_path / "m/loramerge.json").write_text(json.dumps(record))
    (tmp_path / "a").rename(tmp_path / "hidden")
    with pytest.raises(IncompatibleError, match=r"is not the a that was merged: .* has another SHA-256"):
        lm.replay(tmp_path / "m")


BAD_RECORDS = {
    "a place that is none": ({"hub": "org/a/../b"}, "hub is org/a/../b, which is not a place on the Hub"),
    "a place with a revision": ({"hub": "org/a@main"}, "org/a@main has no commit of 40 digits"),
    "no commit": ({"hub": "org/a", "revision": "main"}, "org/a has no commit of 40 digits"),
    "no text": ({"hub": 3}, "hub is 3, not text"),
}


@pytest.mark.parametrize(("change", "words"), BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_a_record_leads_to_one_commit_of_one_repository_only(hub, a, tmp_path, change, words):
    lm.combine(["org/a"], out=tmp_path / "m")
    record = json.loads((tmp_path / "m/loramerge.json").read_text())
    record["sources"][0].update(change)
    (tmp_path / "m/loramerge.json").write_text(json.dumps(record))
    with pytest.raises(SourceError, match=words):
        lm.replay(tmp_path / "m")


def test_every_verb_takes_names_of_the_hub(hub, a, tmp_path, cli):
    local = tmp_path / "a"
    (tmp_path / "list.txt").write_text("org/a 0.5\nhf://org/a@main 0.25\n")
    (tmp_path / "recipe.yaml").write_text(f"sources:\n- {{source: org/a, revision: '{a}', weight: 2}}\n")
    assert lm.combine([f"@{tmp_path}/list.txt"]).report.weights == (0.5, 0.25)
    assert lm.open(["org/a", local]).combine(weights=[1, -1]).report.energy_lost is None
    assert lm.resize("org/a", rank=1).adapter.rank == 1
    assert cli("combine", "--recipe", tmp_path / "recipe.yaml", "-o", "m").code == 0, cli.err
    assert json.loads(open_text("m/loramerge.json"))["sources"][0]["revision"] == a
    assert cli("diff", "org/a", local).code == 0
    assert cli("resize", "org/a", "--rank", "1", "-o", "s").code == 0
    assert cli("replay", "m", "-o", "n").code == 0, cli.err
    assert "the same numbers" in cli.out


def open_text(path):
    with open(path) as stream:
        return stream.read()


def test_a_recipe_that_names_a_revision_gets_that_commit(hub, a, tmp_path, cli):
    hub.add("org/a", files_of(folder(tmp_path / "b", tensors(2))))
    (tmp_path / "r.yaml").write_text(f"sources:\n- {{source: org/a, revision: '{a}'}}\nalpha: {{org/a: 3}}\n")
    assert cli("combine", "--recipe", tmp_path / "r.yaml", "-o", "m").code == 2
    assert "says its own alpha" in cli.err, "the alpha found its source"
    (tmp_path / "r.yaml").write_text(f"sources:\n- {{source: org/a, revision: '{a}'}}\n")
    assert cli("combine", "--recipe", tmp_path / "r.yaml", "-o", "m").code == 0
    equal("m", tmp_path / "a")


def test_a_download_that_breaks_off_goes_on_where_it_was(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits a second before it goes on
    hub.add("org/a", files_of(folder(tmp_path / "a", tensors(1, 200), r=200)))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)  # 10 MB: what it keeps
    hub.broken = 1
    equal(lm.load("org/a"), tmp_path / "a")
    first, second = hub.got("GET", "/lfs/")
    assert first.span is None
    assert second.span is not None
    assert int(second.span.removeprefix("bytes=").rstrip("-")) > 0


def test_a_download_that_never_comes_whole_is_a_sentence_and_leaves_nothing(hub, a, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.broken = 1000
    hub.ranges = False
    with pytest.raises(SourceError, match=r"org/a"):
        lm.load("org/a")
    hub.broken, hub.ranges = 0, True
    equal(lm.load("org/a"), tmp_path / "a")


def test_a_file_that_was_damaged_in_the_cache_is_not_merged(hub, a, tmp_path):
    place = lm.load("org/a").provenance.files[0].resolve()
    data = bytearray(place.read_bytes())
    data[-1] ^= 1
    place.write_bytes(data)
    with pytest.raises(SourceError, match=r"adapter_model\.safetensors of a is not what the Hub has"):
        lm.combine(["org/a"], out=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_bytes_of_lfs_come_from_another_host_without_the_token(hub, a, login):
    hub.repos["org/a"].private = True
    lm.load("org/a")
    lm.inspect("org/a")
    there = [each for each in hub.asked if each.host == "localhost"]
    assert there
    assert ELSEWHERE.startswith("http://localhost")
    assert all(each.token is None for each in there)
    assert any(each.token for each in hub.asked)


def test_all_broken_sources_are_named_at_once(hub, tmp_path):
    """Absent, of another kind, damaged; the good one in between is not to blame."""
    good, odd = folder(tmp_path / "good", tensors(1)), folder(tmp_path / "odd", tensors(2), use_dora=True)
    hub.add("org/good", files_of(good))
    hub.add("org/dora", {**files_of(odd), "adapter_config.json": b'{"peft_type": "LORA", "r": [}'})
    hub.add("org/cut", {**files_of(good), "adapter_model.safetensors": b"\x00" * 40})
    names = ["org/none", "org/good", "org/dora", str(tmp_path / "nothing"), "org/cut", *["org/good"] * 10]
    with pytest.raises(lm.SourceError) as refused:
        lm.combine(names)
    words = str(refused.value)
    assert words.startswith("4 of the 15 sources cannot be merged. (1) org/none does not exist here")
    parts = re.split(r"\(\d\) ", words)[1:]
    wanted = ("org/none", "org/dora", "nothing", "org/cut")
    assert all(name in part for part, name in zip(parts, wanted, strict=True)), parts


def test_several_sources_are_downloaded_at_once_and_stay_in_order(hub, tmp_path):
    for n in range(10):
        hub.add(f"org/n{n}", files_of(folder(tmp_path / f"n{n}", tensors(n))))
    merge = lm.combine([f"org/n{n}" for n in range(10)], weights=list(range(10)))
    assert merge.report.sources == tuple(f"n{n}" for n in range(10))
    equal(merge.adapter, lm.combine([tmp_path / f"n{n}" for n in range(10)], weights=list(range(10))).adapter)


def test_where_one_source_fails_the_downloads_of_others_end():
    begun, ends = threading.Barrier(3, timeout=20), []

    def load(source, peeking=False):
        if peeking:
            return None
        begun.wait()
        if source.source == "org/bad":
            raise SourceError("bad")
        counter = Counter(total=10**9)
        try:
            for _ in range(10**8):
                counter.update(1)
        except Stopped as error:
            ends.append(error)
            raise

    with pytest.raises(SourceError, match="bad"):
        opened([Ingredient(name) for name in ("org/bad", "org/slow", "org/slower")], load)
    assert len(ends) == 2
    Counter().update(1)


def test_two_repositories_of_one_name_are_told_apart(hub, a, tmp_path):
    hub.add("me/a", files_of(tmp_path / "a"))
    assert lm.combine(["org/a", "me/a"]).report.sources == ("org/a", "me/a")


def test_a_start_of_training_may_be_on_the_hub(hub, tmp_path):
    start = folder(tmp_path / "start", tensors(1), init_lora_weights=True)
    trained = folder(tmp_path / "trained", tensors(2), init_lora_weights="pissa")
    hub.add("org/start", files_of(start))
    hub.add("org/trained", files_of(trained))
    wanted = lm.combine([trained], initial={str(trained): start}).adapter
    equal(lm.combine(["org/trained"], initial={"org/trained": "org/start"}).adapter, wanted)


def test_the_same_bytes_give_the_same_merge(hub, a, tmp_path):
    one = lm.combine(["org/a"], "svd", rank=1).adapter
    other = lm.combine([tmp_path / "a"], "svd", rank=1).adapter
    for target in one:
        np.testing.assert_array_equal(one[target].up, other[target].up)
