"""Everything the Hub can answer but the file is a sentence of its own, exit code 1, and without a token."""

import errno

import pytest

import loramerge as lm
from loramerge.errors import SourceError
from tests.helpers.files import folder, tensors
from tests.hub.loopback import TOKEN, files_of


@pytest.fixture
def a(hub, tmp_path):
    return hub.add("org/a", files_of(folder(tmp_path / "a", tensors(1))))


def gated(hub):
    hub.repos["org/a"].gated = True


def private(hub):
    hub.repos["org/a"].private = True


def status(code):
    return lambda hub: hub.status.update({"/api/models/org/a": code})


def without(file):
    return lambda hub: hub.repos["org/a"].commits[hub.repos["org/a"].sha("main")].pop(file)


def nothing(hub):
    pass


def model(hub):
    hub.add("org/m", {"config.json": b"{}", "model.safetensors": b"x"})


SENTENCES = {
    "missing": (
        "org/b",
        nothing,
        ["org/b does not exist here, and org/b is not a repository", "hf auth login"],
    ),
    "missing, in full": ("hf://org/b", nothing, ["org/b is not a repository on the Hub", "HF_TOKEN"]),
    "private": ("org/a", private, ["org/a does not exist here", "or it is private"]),
    "gated": ("org/a", gated, ["org/a is gated", "accept its terms", "hf auth login"]),
    "no such revision": ("org/a@v9", nothing, ["org/a has no revision v9"]),
    "no such commit": (f"org/a@{'0' * 40}", nothing, ["org/a has no revision 0000"]),
    "no such folder": ("hf://org/a/sub", nothing, ["org/a has no folder sub", "adapter_model.safetensors"]),
    "no such file": (
        "hf://org/a/x.safetensors",
        nothing,
        ["no file x.safetensors; it has adapter_model.safet"],
    ),
    "no weights": ("org/a", without("adapter_model.safetensors"), ["but no adapter_model.safetensors"]),
    "nothing to read": (
        "org/m",
        lambda hub: hub.add("org/m", {"a.txt": b""}),
        ["org/m has no adapter_config"],
    ),
    "a whole model": ("org/m", model, ["org/m has no adapter_config.json: it is a model, not an adapter"]),
    "no login is accepted": ("org/a", status(401), ["org/a"]),
    "not allowed": ("org/a", status(403), ["Your login may not read org/a"]),
    "a file that is not allowed": (
        "org/a",
        lambda hub: hub.status.update({"/resolve/": 403}),
        ["may not read"],
    ),
    "too many requests": ("org/a", status(429), ["too many requests", "HTTP 429", "wait"]),
    "down": ("org/a", status(500), ["The Hub answers HTTP 500 for org/a", "Try again later"]),
    "a strange answer": ("org/a", status(418), ["The Hub answers HTTP 418 for org/a"]),
    "no name": (
        "hf://org",
        nothing,
        ["hf://org is not a name on the Hub", "hf://org/name@revision/subfolder"],
    ),
}


@pytest.mark.parametrize(("source", "prepare", "words"), SENTENCES.values(), ids=SENTENCES)
def test_a_source_that_cannot_be_had(hub, a, cli, source, prepare, words):
    prepare(hub)
    cli("combine", source, "-o", "m").refused(1, *words)


@pytest.mark.parametrize("prepare", [gated, private, status(401), status(403), status(418), status(500)])
def test_with_a_login_the_token_is_in_no_sentence(hub, a, login, cli, prepare):
    prepare(hub)
    hub.users.clear()  # nor does the server accept it
    cli("combine", "org/a", "-o", "m").refused(1, "org/a")
    assert TOKEN not in cli.err
    assert "hf_" not in cli.err


def test_a_refused_token_is_told(hub, a, login, cli):
    hub.users.clear()
    cli("inspect", "org/a")
    assert cli.err == (
        "Error: The Hub refuses your token for org/a: it is wrong or has expired. Please log in with "
        "`hf auth login`, or set HF_TOKEN.\n"
    )


def test_with_a_login_a_private_adapter_is_read(hub, a, login):
    private(hub)
    assert len(lm.load("org/a")) == 4


def test_offline_and_not_in_the_cache(hub, a, offline, cli):
    offline()
    cli("combine", "org/a", "-o", "m").refused(1, "org/a does not exist here", "HF_HUB_OFFLINE is set")
    cli("combine", "hf://org/a/x.safetensors").refused(1, "hf://org/a/x.safetensors is not in the cache")
    cli("combine", "hf://collections/me/x").refused(1, "HF_HUB_OFFLINE is set")


def test_offline_a_config_alone_is_no_adapter(hub, a, offline, cli):
    assert cli("inspect", "org/a").code == 0
    offline()
    cli("combine", "org/a").refused(1, "is not in the cache")


def test_a_network_that_is_down(hub, a, monkeypatch, cli):
    import huggingface_hub

    monkeypatch.setattr(
        "loramerge.hub.client.api", lambda: huggingface_hub.HfApi(endpoint="http://127.0.0.1:9")
    )
    cli("combine", "org/a").refused(1, "org/a does not exist here", "The Hub cannot be reached")
    monkeypatch.setattr(
        "loramerge.hub.fetch.api", lambda: huggingface_hub.HfApi(endpoint="http://127.0.0.1:9")
    )
    cli("combine", "hf://org/a").refused(1, "The Hub cannot be reached for org/a: check the network")


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "no space left in the cache"), (errno.EACCES, "Set HF_HUB_CACHE")]
)
def test_a_cache_that_cannot_be_written(hub, a, monkeypatch, cli, number, words):
    def refuse(*_, **__):
        raise OSError(number, "refused")

    monkeypatch.setattr("huggingface_hub.file_download._download_to_tmp_and_move", refuse)
    cli("combine", "org/a").refused(1, words, "org/a")


def test_a_repository_that_moves_under_the_download(hub, a, monkeypatch, tmp_path):
    from loramerge.hub import fetch

    def ask(name):
        found = client_ask(name)
        hub.add("org/a", files_of(tmp_path / "a"))
        return found

    client_ask = fetch.ask
    monkeypatch.setattr(fetch, "ask", ask)
    with pytest.raises(SourceError, match=r"hf://org/a was changed while it was read: run it again"):
        lm.load("org/a")


def test_a_damaged_adapter_is_named_as_it_was_given(hub, a, cli):
    hub.repos["org/a"].commits[a]["adapter_model.safetensors"] = b"\x08" + bytes(3000)
    cli("combine", "org/a").refused(1, "org/a/adapter_model.safetensors cannot be read as safetensors")
