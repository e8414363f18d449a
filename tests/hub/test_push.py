"""An adapter is put on the Hub in one commit, whole, by whoever is logged in, and is read as it was."""

import json
import os

import pytest

import loramerge as lm
from loramerge.errors import IncompatibleError, LoramergeError, OutputError, SourceError, UsageError
from tests.helpers.files import bare, folder, tensors
from tests.hub.loopback import TOKEN, files_of

SENT = {"README.md", "adapter_config.json", "adapter_model.safetensors", "loramerge.json"}


@pytest.fixture
def merged(tmp_path):
    """A merge of two folders."""
    sources = [folder(tmp_path / name, tensors(i)) for i, name in enumerate("ab")]
    lm.combine(sources, weights=[0.75, -0.25], out=tmp_path / "m")
    return tmp_path / "m"


def there(hub, name="me/m", revision="main"):
    return {k: v for k, v in hub.repos[name].files(revision).items() if k != ".gitattributes"}


def test_what_is_pushed_comes_back_as_it_was(hub, login, merged):
    done = lm.push(merged, "me/m")
    assert there(hub).keys() == SENT
    assert {k: v for k, v in there(hub).items() if k != "README.md"} == files_of(merged)
    assert lm.diff(merged, "me/m").largest == 0
    assert lm.load("me/m").provenance.revision == done.commit == hub.repos["me/m"].sha("main")
    assert done.url.endswith(f"/me/m/commit/{done.commit}")
    assert done.changed
    assert not hub.repos["me/m"].private


def test_it_is_one_commit(hub, login, merged):
    lm.push(merged, "me/m")
    assert len(hub.got("POST", "/commit/")) == 1
    assert len(hub.repos["me/m"].commits) == 2, "that of the creation, and ours"
    assert hub.repos["me/m"].messages == ["Upload a LoRA adapter with loramerge"]


def test_the_same_again_is_no_commit(hub, login, merged):
    first = lm.push(merged, "me/m")
    again = lm.push(merged, "me/m")
    assert (again.commit, again.changed) == (first.commit, False)
    assert len(hub.got("POST", "/commit/")) == 1


def test_a_new_version_replaces_our_card_and_files(hub, login, merged, tmp_path):
    lm.push(merged, "me/m")
    lm.combine([tmp_path / "a"], weights=[3], out=tmp_path / "m2")
    lm.push(tmp_path / "m2", "me/m")
    assert lm.diff(tmp_path / "m2", "me/m").largest == 0
    assert b"| 3 |" in there(hub)["README.md"]


def test_a_private_repository(hub, login, merged):
    lm.push(merged, "me/m", private=True)
    assert hub.repos["me/m"].private
    lm.push(merged, "me/m", private=True)
    assert lm.diff(merged, "me/m").largest == 0


def test_what_shall_be_private_is_not_sent_to_a_public_repository(hub, login, merged):
    hub.add("me/m", {})
    with pytest.raises(OutputError, match="is there already, and public: nothing was sent"):
        lm.push(merged, "me/m", private=True)
    assert there(hub) == {}


def test_a_branch_is_made_and_main_is_left_alone(hub, login, merged):
    lm.push(merged, "me/m", revision="try/one")
    assert there(hub) == {}
    assert there(hub, revision="try/one").keys() == SENT
    assert lm.diff(merged, "hf://me/m@try%2Fone").largest == 0
    lm.push(merged, "me/m", revision="try/one")


def test_a_pull_request_leaves_main_alone(hub, login, merged):
    hub.add("team/m", {"README.md": b"theirs"})
    done = lm.push(merged, "team/m", create_pr=True)
    assert done.url.endswith("/team/m/discussions/1")
    assert there(hub, "team/m") == {"README.md": b"theirs"}
    assert lm.diff(merged, "team/m@refs/pr/1").largest == 0


def test_another_commit_meanwhile_is_told_and_nothing_is_changed(hub, login, merged):
    hub.before_commit = lambda repo: repo.commit({"theirs.txt": b"first"})
    with pytest.raises(
        OutputError, match=r"me/m got another commit while this one was prepared.* Run it again"
    ):
        lm.push(merged, "me/m")
    assert there(hub) == {"theirs.txt": b"first"}
    hub.before_commit = None
    lm.push(merged, "me/m")
    assert there(hub).keys() == SENT | {"theirs.txt"}


def test_a_card_that_is_there_is_not_replaced(hub, login, merged, tmp_path):
    (merged / "README.md").write_text("mine")
    lm.push(merged, "me/m")
    assert there(hub)["README.md"] == b"mine"
    (merged / "README.md").unlink()
    done = lm.push(merged, "me/m")
    assert there(hub)["README.md"] == b"mine"
    assert done.notes == ("me/m has a card that loramerge did not write: it was left as it is",)
    assert sorted(os.listdir(merged)) == sorted(SENT - {"README.md"}), "nor is one written here"


def test_a_bare_file_keeps_its_name(hub, login, tmp_path):
    lm.combine([folder(tmp_path / "a", tensors(1))], out=tmp_path / "x.safetensors")
    lm.push(tmp_path / "x.safetensors", "me/x")
    assert there(hub, "me/x").keys() == {"x.safetensors", "README.md"}
    assert lm.diff(tmp_path / "x.safetensors", "me/x").largest == 0
    assert lm.replay("hf://me/x/x.safetensors", folders=[tmp_path]).adapter.rank == 2


def test_what_is_no_part_of_the_adapter_stays_here(hub, login, merged):
    (merged / "secrets.env").write_text("x")
    (merged / ".git").mkdir()
    (merged / "checkpoint-1").mkdir()
    done = lm.push(merged, "me/m")
    assert there(hub).keys() == SENT
    assert done.notes == ("checkpoint-1, secrets.env are no part of the adapter, and were not sent",)


def test_a_pushed_merge_can_be_replayed_from_its_name(hub, login, merged, tmp_path, cli):
    lm.push(merged, "me/m")
    again = lm.replay("me/m", tmp_path / "again", folders=[tmp_path])
    assert files_of(tmp_path / "again") == files_of(merged)
    assert lm.diff("me/m", again.adapter).largest == 0
    assert cli("replay", "me/m", "--source", tmp_path, "-o", "third").code == 0
    assert "the same numbers as me/m\n" in cli.out


def no_login(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")


def bad_token(hub, monkeypatch):
    hub.users.clear()


def is_offline(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def said(**changes):
    def change(hub, monkeypatch):
        for name, value in changes.items():
            setattr(hub, name, value)

    return change


REFUSED = {
    "nobody is logged in": (no_login, "me/m", "Pushing to me/m needs a login: log in with `hf auth login`"),
    "a bad token": (bad_token, "me/m", "The Hub refuses your token for me/m"),
    "offline": (is_offline, "me/m", "me/m cannot be written to: HF_HUB_OFFLINE is set"),
    "not ours": (said(), "they/m", "Your login may not write to they/m"),
    "no login in time": (said(status={"/commit/": 401}), "me/m", "me/m"),
    "the Hub fails": (said(status={"/commit/": 500}), "me/m", "The Hub answers HTTP 500 for me/m"),
    "the Hub says no": (said(status={"/preupload/": 400}), "me/m", "The Hub answers HTTP 400 for me/m"),
    "a bad card": (
        said(card_error="license is bad"),
        "me/m",
        "does not accept the card: Invalid metadata in README",
    ),
    "no such thing": (said(status={"/api/repos/create": 404}), "me/m", "has no me/m that you may write to"),
}


@pytest.mark.parametrize(("prepare", "name", "words"), REFUSED.values(), ids=REFUSED)
def test_a_push_that_is_refused_is_a_sentence_without_the_token(
    hub, login, merged, monkeypatch, cli, prepare, name, words
):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    prepare(hub, monkeypatch)
    cli("push", merged, name).refused(1, words)
    assert TOKEN not in cli.err
    assert not any(there(hub, repo) for repo in hub.repos)


@pytest.mark.parametrize("name", ["m", "me/m/x", "me/m@v1", "../m", "hf://me/m", "me/m.."])
def test_what_is_no_name_of_a_repository_is_a_usage_error(hub, login, merged, cli, name):
    cli("push", merged, name).refused(2, "is not a repository on the Hub: its name must be org/name")
    cli("combine", merged, "--push", name, "-o", "x").refused(2, "is not a repository")
    assert hub.asked == []


@pytest.mark.parametrize("revision", ["-x", "a..b", "a b"])
def test_what_is_no_branch_is_a_usage_error(hub, login, merged, revision):
    with pytest.raises(UsageError, match="is not the name of a branch"):
        lm.push(merged, "me/m", revision=revision)
    with pytest.raises(UsageError, match="drop revision="):
        lm.push(merged, "me/m", revision="b", create_pr=True)


def test_only_an_adapter_that_can_be_read_is_sent(hub, login, tmp_path):
    broken = folder(tmp_path / "broken", tensors(1), r=7)
    silent = bare(tmp_path / "silent.safetensors", tensors(1))
    for path, error in [(broken, SourceError), (silent, IncompatibleError), (tmp_path / "no", SourceError)]:
        with pytest.raises(error):
            lm.push(path, "me/m")
    with pytest.raises(SourceError, match="me/other does not exist: push takes a folder or a file"):
        lm.push("me/other", "me/m")
    assert hub.repos == {}
    assert hub.asked == []


def test_an_adapter_of_somebody_is_pushed_with_a_plain_card(hub, login, tmp_path):
    lm.push(folder(tmp_path / "a", tensors(1), task_type="CAUSAL_LM"), "me/a")
    card = there(hub, "me/a")["README.md"].decode()
    assert "license" not in card
    assert '- "merge"' not in card
    assert "put here by loramerge: 4 modules, rank 2, float32" in card


def test_what_the_hub_says_of_the_card_is_passed_on(hub, login, merged, cli):
    hub.card_warning = "empty or missing yaml metadata"
    assert cli("push", merged, "me/m").code == 0
    assert "empty or missing yaml metadata" in cli.err
    assert cli.out == lm.push(merged, "me/m").url + "\n"


def test_push_prints_the_address_only(hub, login, merged, cli):
    assert cli("push", merged, "me/m", "-q").out.startswith("http")
    assert cli.err == ""
    found = cli("push", merged, "me/m", "--json").json()
    assert found["changed"] is False
    assert found["repo"] == "me/m"
    assert cli("push", merged, "me/m").code == 0
    assert cli.err == "note: me/m has all of it already\n"
    cli("push", merged, "me/m", "-q", "--json")
    assert cli.code == 2


def test_combine_pushes_what_it_has_written(hub, login, tmp_path, cli):
    a = folder(tmp_path / "a", tensors(1))
    assert cli("combine", a, "-o", "m", "--push", "me/m", "--private").code == 0, cli.err
    assert cli.err.endswith(f"pushed {lm.push('m', 'me/m').url}\n")
    assert hub.repos["me/m"].private
    assert lm.diff("m", "me/m").largest == 0
    assert (
        cli("combine", a, "-o", "x.safetensors", "--push", "me/x", "--json")
        .json()["pushed"]
        .startswith("http")
    )
    assert b"rounding error" in there(hub, "me/x")["README.md"], (
        "a file holds no report, but combine knows it"
    )
    assert cli("combine", a, "-o", "n", "--push", "me/n", "-q").out == "n\n"
    assert cli("combine", a, "-o", "o", "--private").code == 2


def test_a_merge_is_not_begun_where_nobody_is_logged_in(hub, tmp_path, cli):
    folder(tmp_path / "a", tensors(1))
    cli("combine", tmp_path / "a", "-o", "m", "--push", "me/m").refused(1, "needs a login")
    assert os.listdir() == []


def test_a_merge_that_could_not_be_pushed_is_written_all_the_same(hub, login, tmp_path, cli):
    folder(tmp_path / "a", tensors(1))
    hub.before_commit = lambda repo: repo.commit({"theirs.txt": b"first"})
    assert cli("combine", tmp_path / "a", "-o", "m", "--push", "me/m").code == 1
    assert cli.err.endswith("The merge is written: loramerge push m me/m sends it.\n")
    assert len(lm.load("m")) == 4
    assert "cos(merge)" in cli.out


def test_a_dry_run_sends_nothing(hub, login, tmp_path, cli):
    folder(tmp_path / "a", tensors(1))
    assert cli("combine", tmp_path / "a", "-o", "m", "--push", "me/m", "--dry-run").code == 0
    assert hub.asked == []


def test_a_record_that_cannot_be_read_is_a_sentence(hub, login, merged):
    (merged / "loramerge.json").write_text("[1]")
    with pytest.raises(LoramergeError, match=r"loramerge\.json"):
        lm.push(merged, "me/m")
    (merged / "loramerge.json").write_text(
        json.dumps({"sources": [{"name": 3}, 4], "method": 5, "report": []})
    )
    assert lm.push(merged, "me/m").changed, "what is odd in it is not told"


MASKS = "masks/masks.safetensors"
ROUTER = "masks/router.safetensors"


@pytest.fixture
def masked(tmp_path, monkeypatch):
    """A merge of two tasks with masks, in the folder `m`, which the sources lie beside."""
    monkeypatch.chdir(tmp_path)
    sources = [folder(tmp_path / name, tensors(i)) for i, name in enumerate("ab")]
    lm.combine(sources, "mergevla", out="m")
    return tmp_path / "m"


def test_masks_go_with_their_merge_and_restore_its_tasks_there(hub, login, masked):
    assert lm.push(masked, "me/m").notes == ()
    assert there(hub).keys() == SENT | {MASKS, ROUTER}
    for task in "ab":
        lm.restore("me/m", task, f"far-{task}")
        assert lm.diff(lm.restore(masked, task, f"near-{task}").adapter, f"far-{task}").largest == 0


def test_a_clone_of_what_was_pushed_can_be_restored(hub, login, masked, tmp_path):
    from huggingface_hub import snapshot_download

    lm.push(masked, "me/m")
    clone = snapshot_download("me/m", local_dir=tmp_path / "clone")
    assert lm.diff(lm.restore(clone, "a").adapter, lm.restore(masked, "a").adapter).largest == 0


def test_combine_pushes_masks_too(hub, login, tmp_path, cli):
    a, b = (folder(tmp_path / name, tensors(i)) for i, name in enumerate("ab"))
    assert cli("combine", a, b, "--method", "mergevla", "-o", "m", "--push", "me/m").code == 0, cli.err
    assert there(hub)[MASKS] == (tmp_path / "here/m" / MASKS).read_bytes()
    assert cli("restore", "me/m", "--task", "a", "-o", "again").code == 0, cli.err
    cli("restore", "me/m", "--task", "c", "-o", "x").refused(2, "me/m has no task c; it has a, b")


def test_what_else_lies_among_masks_stays_here(hub, login, masked):
    (masked / "masks/mine.txt").write_text("x")
    (masked / "masks/deep").mkdir()
    done = lm.push(masked, "me/m")
    assert there(hub).keys() == SENT | {MASKS, ROUTER}
    assert done.notes == ("masks/deep, masks/mine.txt are no part of the adapter, and were not sent",)


def test_masks_of_another_tool_are_unknown(hub, login, merged):
    (merged / "masks").mkdir()
    bare(merged / MASKS, tensors(1))
    done = lm.push(merged, "me/m")
    assert there(hub).keys() == SENT
    assert done.notes == (f"{MASKS} is no part of the adapter, and was not sent",)


def test_what_an_earlier_push_has_left_is_told(hub, login, masked, tmp_path):
    lm.push(masked, "me/m")
    lm.combine([tmp_path / "a"], out="n")
    assert lm.push("n", "me/m").notes == (
        f"me/m still has {MASKS}, {ROUTER} of an earlier push: delete there what is not of this adapter",
    )
    with pytest.raises(IncompatibleError, match=r"The masks of .* were made for another merge"):
        lm.restore("me/m", "a")


def test_what_is_no_merge_with_masks_is_told_by_its_name(hub, login, merged, cli):
    lm.push(merged, "me/m")
    cli("restore", "me/m", "--task", "a", "-o", "x").refused(1, "me/m has no masks/masks.safetensors: only a")
    cli("restore", "me/none", "--task", "a", "-o", "x").refused(
        1, "me/none does not exist here, and me/none is no"
    )
    cli("replay", "me/none", "-o", "x").refused(
        1, "me/none does not exist here, and me/none is not a repository"
    )


def test_what_has_no_record_is_told_by_its_name(hub, login, tmp_path, cli):
    hub.add("org/a", files_of(folder(tmp_path / "a", tensors(1))))
    cli("replay", "org/a", "-o", "x").refused(1, "Error: org/a has no loramerge.json: it was not written by")


def test_a_large_file_is_told_of_when_it_is_there(hub, login, tmp_path, monkeypatch):
    """Files and the commit are counted, and the commit comes after the last file; it is one commit."""
    from loramerge.hub import commits

    monkeypatch.setattr(commits, "LARGE", 100)
    told, sent = [], []

    def tell(stage, done, total):
        told.append((stage, done, total))
        sent.append(len(hub.uploads))

    files = folder(tmp_path / "a", tensors(1, shapes={"model.layers.0.self_attn.q_proj": (96, 96)}))
    before = len(hub.repos)
    done = lm.push(files, "me/told", progress=tell)
    assert done.changed
    assert len(hub.repos) == before + 1
    assert {stage for stage, *_ in told} == {"pushing"}
    assert told[0][1:] == (0, 4)
    assert told[-1][1:] == (4, 4)
    assert sent[0] == 0
    assert sent[-1] == 1
    assert len(hub.repos["me/told"].messages) == 1
    assert not lm.push(files, "me/told", progress=tell).changed
