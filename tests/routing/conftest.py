import pytest

from tests.helpers.files import Cli


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """The command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Cli(capsys)
