"""What names a repository of the Hub, and what does not."""

import pytest

from loramerge.errors import SourceError
from loramerge.hub.names import HubName, hub_name, parse, pinned

NAMES = {
    "org/name": HubName("org/name"),
    "org/name@v1": HubName("org/name", "v1"),
    "org/name@refs/pr/3": HubName("org/name", "refs/pr/3"),
    "o_1/Llama-3.1-8B_x.y": HubName("o_1/Llama-3.1-8B_x.y"),
    "hf://org/name": HubName("org/name"),
    "hf://org/name/": HubName("org/name"),
    "hf:/org/name": HubName("org/name"),  # what a Path makes of it
    "hf://models/org/name": HubName("org/name"),
    "hf://org/name@v1/sub/folder": HubName("org/name", "v1", "sub/folder"),
    "hf://org/name@refs/pr/1/sub": HubName("org/name", "refs/pr/1", "sub"),
    "hf://org/name@feature%2Fone/x.safetensors": HubName("org/name", "feature/one", "x.safetensors"),
}
PATHS = [
    "name",
    "a/b/c",
    "./org/name",
    "/org/name",
    "../name",
    "org/",
    "org/name.safetensors",
    "org/weights.bin",
    "org/name@",
    "org/name@a..b",
    "org/name@-x",
    "org--x/name",
    "org/a..b",
    "org/na me",
    "org/näme",
    "org/-name",
    "org\\name",
]
MALFORMED = [
    "hf://",
    "hf://name",
    "hf://org/name@",
    "hf://org/name@a..b",
    "hf://org/name//x",
    "hf://org/name/../x",
    "hf://org/name/./x",
    "hf://org/name/a\\b",
    "hf://org/name/a\x1b[31m",
    "hf://or g/name",
    "hf://org/name@%2e%2e",
    "hf://org",
]


@pytest.mark.parametrize(("text", "name"), NAMES.items(), ids=NAMES)
def test_a_name_of_the_hub(text, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_name(text) == name
    assert parse(str(name)) == name


@pytest.mark.parametrize("text", PATHS)
def test_anything_else_is_a_path(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_name(text) is None


@pytest.mark.parametrize("text", MALFORMED)
def test_what_begins_as_a_name_must_be_one(text):
    with pytest.raises(
        SourceError, match=r"is not a name on the Hub: .* hf://org/name@revision/subfolder"
    ) as error:
        hub_name(text)
    assert str(error.value).isprintable()


def test_an_existing_path_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/name").mkdir(parents=True)
    assert hub_name("org/name") is None
    assert pinned("org/name", "v1") == "org/name"
    assert pinned("org/other", "v1") == "hf://org/other@v1"
    assert pinned("org/other@v2", "v1") == "org/other@v2"
    assert pinned("hf://collections/me/x", "v1") == "hf://collections/me/x"
