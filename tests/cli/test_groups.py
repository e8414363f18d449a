"""Help in groups, and what the shell completes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from loramerge.cli import COMMANDS, loramerge
from loramerge.cli.catalogue import METHODS
from loramerge.cli.groups import FEW, OTHERS, TITLES, part_of
from loramerge.cli.options import specs_of
from loramerge.request.request import FIELDS
from loramerge.routing.gates.names import GATES

README = Path(__file__).resolve().parents[2] / "README.md"


def command(name):
    return loramerge.get_command(click.Context(loramerge), name)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_belongs_to_a_part(name):
    of_methods = {option for method in METHODS for option in (spec.name for spec in specs_of(method))}
    of_gates = {option for gate in GATES for option in GATES[gate].names()}
    options = [each for each in command(name).params if isinstance(each, click.Option)]
    for option in options:
        assert option.name in FIELDS.keys() | OTHERS.keys() | of_methods | of_gates
        assert part_of(option) in TITLES


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_many_options_in_groups_and_each_once(cli, name):
    shown = cli(name, "--help").out
    flags = re.findall(r"^  (?:-\w, )?(--[\w-]+)", shown, re.MULTILINE)
    assert len(flags) == len(set(flags))
    heads = re.findall(r"^(\w+):$", shown, re.MULTILINE)
    titles = [title for title in TITLES.values() if title in heads]
    assert [head for head in heads if head in titles] == titles
    assert ("Output" in titles) == (len(flags) > FEW)


def test_the_options_of_a_method_stand_under_method(cli):
    shown = cli("combine", "--method", "lego", "--help").out
    group = shown.partition("\nMethod:\n")[2].partition("\n\n")[0]
    assert "--method" in group
    assert "--variant" in group
    assert "--help" not in group


def completed(words, monkeypatch, capsys):
    """What bash is offered, after the last word."""
    monkeypatch.setenv("COMP_WORDS", f"loramerge {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" "))))
    monkeypatch.setenv("_LORAMERGE_COMPLETE", "bash_complete")
    with pytest.raises(SystemExit):
        loramerge.main([], prog_name="loramerge")
    return capsys.readouterr().out.splitlines()


OFFERED = {
    "me": ["plain,methods"],
    "combine --method t": ["plain,tsv", "plain,ties"],
    "methods kar": ["plain,karcher"],
    "combine --format k": ["plain,kohya"],
    "combine a --method ties --densi": ["plain,--density"],
    "combine --method nobody --wei": ["plain,--weight", "plain,--weights"],
    "combine runs/a": ["file,runs/a"],
    "inspect a": ["file,a"],
    "convert a b --to pe": ["plain,peft"],
    "check a --for vl": ["plain,vllm"],
    "combine a -o ou": ["file,ou"],
}


@pytest.mark.parametrize("words", OFFERED)
def test_the_shell_completes(words, monkeypatch, capsys):
    assert completed(words, monkeypatch, capsys) == OFFERED[words]


FREE = {  # options whose values nobody but the user knows
    "KEY=VALUE", "FLOAT", "INTEGER", "W,W,...", "REGEX", "SIZE", "SHARE", "SIDE=END", "SOURCE=PATH",
    "SOURCE=TEXT", "BRANCH", "[SOURCE=]BLOCKS", "ORG/NAME", "TEXT",
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_the_shell_completes_every_value_that_it_can_know(name):
    found = command(name)
    context = click.Context(found)
    for param in found.get_params(context):
        if isinstance(param, click.Option) and (param.is_flag or param.name in ("task", "row")):
            continue
        offered = param.shell_complete(context, "")
        metavar = (param.metavar or param.type.name).upper().removesuffix(" RANGE")
        assert offered or metavar in FREE, f"{param.opts[0]} {metavar}"
        if metavar in (
            "FILE",
            "BASE",
            "ADAPTER",
            "SOURCE",
            "SOURCE...",
            "HOW",
            "[NAME=]PATH",
            "OLD=NEW|FILE",
        ):
            assert [item.type for item in offered] in (["file"], ["dir"])


@pytest.mark.parametrize("columns", [36, 48, 60])
@pytest.mark.parametrize("command", [(), ("combine",), ("route",), ("methods",)], ids=" ".join)
def test_help_fits_a_narrow_terminal(cli, monkeypatch, command, columns):
    """But for examples, which are to be pasted."""
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = cli(*command, "--help").out.splitlines()
    assert len(lines) >= 8
    assert [line for line in lines if len(line) > columns and "    loramerge " not in line] == []


def test_in_a_narrow_terminal_choices_are_broken_between_any_two(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    shown = "".join(line.strip() for line in cli("combine", "--help").out.splitlines())
    assert "--grain [fused|split|fused-experts|split-experts|fused-projections|split-projections]" in shown


@pytest.mark.parametrize(
    ("shell", "ask"), [("bash", "complete -p loramerge"), ("zsh", "print $_comps[loramerge]")]
)
def test_the_line_of_the_readme_lets_a_shell_complete(shell, ask):
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"no {shell} here")
    (line,) = (line for line in README.read_text(encoding="utf-8").splitlines() if f"={shell}_source" in line)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [found, "-c", f"{line}\n{ask}"], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "_loramerge_completion" in done.stdout
