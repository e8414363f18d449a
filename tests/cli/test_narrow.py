"""Tables and sentences fit the terminal that they are shown in; a file or a pipe has them whole."""

import pytest

from tests.helpers.files import folder, tensors

COMMANDS = {
    "methods": (),
    "inspect": ("a", "b"),
    "check": ("a", "--for", "llama.cpp"),
    "diff": ("a", "b"),
    "combine": ("a", "b", "c", "--method", "ties", "-o", "m.safetensors"),
    "combine dry": ("a", "b", "--method", "svd", "--dry-run"),
}


@pytest.fixture
def three(tmp_path):
    for seed, name in enumerate("abc"):
        folder(tmp_path / name, tensors(seed))


@pytest.mark.parametrize("columns", [40, 60])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_printed_fits_the_terminal(cli, three, monkeypatch, command, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    done = cli(command.partition(" ")[0], *COMMANDS[command])
    assert done.code in (0, 3, 5), done.err
    assert len(done.out.splitlines()) > 2
    long = [line for line in done.out.splitlines() if len(line) > columns]
    assert [line for line in long if "mend: loramerge " not in line] == [], "what is to be pasted stays whole"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_narrow_terminal_is_told_what_a_wide_one_is(cli, three, monkeypatch, command):
    """Every word of it: tables are not cut."""
    told = {}
    for columns in (40, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        words = (*COMMANDS[command], "--overwrite") if command == "combine" else COMMANDS[command]
        text = cli(command.partition(" ")[0], *words).out
        told[columns] = {word.strip(",") for word in text.split()}
    assert told[200] <= told[40] | {"method", "family", "module", "source", "total", "rank"}, "but heads"


def test_a_pipe_has_a_line_for_each_row(cli, three, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = cli("diff", "a", "b").out.splitlines()
    assert lines[1].split() == ["module", "error", "cosine", "‖B‖/‖A‖"]
    assert len({len(line) for line in lines[1:-1]}) == 1
