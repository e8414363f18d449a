from __future__ import annotations

import os

import pytest

from tests.helpers.files import Cli
from tests.hub import answers, loopback


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that answers, an empty cache, nobody logged in."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    found = loopback.Hub()
    answers.start(found)
    yield found
    leaks = [each for each in found.asked if each.host == "localhost" and each.token]
    assert not leaks, "a token went to another host"


@pytest.fixture
def login(hub, monkeypatch):
    """Somebody is logged in as `me`."""
    monkeypatch.setenv("HF_TOKEN", loopback.TOKEN)


@pytest.fixture
def offline(monkeypatch):
    """Call it, and the client may ask nobody."""
    from huggingface_hub import constants

    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """The command line in this process, in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Cli(capsys)


@pytest.fixture
def environment(tmp_path):
    """The variables for a process of its own that may ask the Hub."""
    return {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
