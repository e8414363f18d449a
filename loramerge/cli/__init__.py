"""The command line: parse, call one library function, print. Commands are imported when they are called."""

from __future__ import annotations

import gc
import io
import itertools
import re
import sys
import warnings
from importlib import import_module

import click

from loramerge import __version__
from loramerge.adapters.reading import reading
from loramerge.cli.downloads import one_bar
from loramerge.cli.failures import ended_by_signals, exit_code, interrupted_once
from loramerge.cli.narrow import Context
from loramerge.errors import alike, speaking

COMMANDS = {  # name -> one line for --help; the module and the function have the same name
    "combine": "Merge adapters into one adapter.",
    "convert": "Write an adapter in another format.",
    "extract": "Take an adapter out of a tuned model: what it adds to its base.",
    "fuse": "Add an adapter to its base model, or take it out again.",
    "diff": "Compare two adapters module by module.",
    "check": "Find out what other programs would do with an adapter.",
    "inspect": "Show modules, ranks, scales and spectra of adapters.",
    "report": "Write a page about adapters: overlaps, spectra, methods.",
    "push": "Upload an adapter to the Hub, with a card.",
    "resize": "Make one adapter smaller, losing as little as possible.",
    "restore": "Bring one task back from a merge with masks.",
    "replay": "Repeat a recorded merge, and compare.",
    "route": "Keep adapters apart, with a gate that chooses by the input.",
    "methods": "List the methods, or explain one.",
}
VERBS = {  # what others call them
    **dict.fromkeys(("merge", "mix", "blend", "add"), "combine"),
    **dict.fromkeys(("compare", "cmp"), "diff"),
    **dict.fromkeys(("info", "show", "stat", "ls"), "inspect"),
    **dict.fromkeys(("page", "plot", "view", "html"), "report"),
    **dict.fromkeys(("upload", "publish"), "push"),
    **dict.fromkeys(("shrink", "compress", "prune", "truncate"), "resize"),
    **dict.fromkeys(("export", "translate", "save"), "convert"),
    **dict.fromkeys(("validate", "verify", "lint"), "check"),
    **dict.fromkeys(("unmerge", "task"), "restore"),
    **dict.fromkeys(("redo", "repeat", "reproduce"), "replay"),
    **dict.fromkeys(("list", "algorithms"), "methods"),
    **dict.fromkeys(("bundle", "moe", "gate"), "route"),
}


class LazyGroup(click.Group):
    """A group that imports a command only when it runs, so that --help needs no NumPy."""

    context_class = Context

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"loramerge.cli.{cmd_name}"), cmd_name)
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)  # the rest is imported while the command runs
        gc.enable()
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            word = args[0].lower()
            near = [VERBS[word]] if word in VERBS else alike(word, COMMANDS)
            hint = f" Did you mean {near[0]}?" if near else f" There are {', '.join(COMMANDS)}."
            raise click.UsageError(f"There is no command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _check_empty(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            with one_bar(), reading():  # from here on words are parsed, and files that they name are read
                return super().invoke(ctx)
        except BrokenPipeError:  # the reader has seen enough; click would call it a failure
            raise click.exceptions.Exit(0) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _check_empty(args: list[str]) -> None:
    """Raises UsageError: a word is empty, as where a shell variable is not set. No option means that."""
    for before, word in itertools.pairwise(["", *args]):
        if before == "--":
            return
        if word == "":
            said = f"{before} is followed by an empty word" if before.startswith("-") else "A word is empty"
            raise click.UsageError(f"{said}: leave it out, or give it a value.")
        if re.fullmatch(r"--[\w-]+=", word):
            raise click.UsageError(f"{word} has no value: leave it out, or give it one.")


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 known error; 2 usage; 3 the adapters cannot be merged as asked, or `check` "
    "found something; 4 verification failed; 5 `check` cannot tell; 70 a bug in loramerge; 130 interrupted.",
)
@click.version_option(__version__, prog_name="loramerge")
@click.pass_context
def loramerge(ctx: click.Context) -> None:
    """Merge LoRA adapters into one: exactly, without the base model, and proved by reading the file back.

    \b
    Example:
      loramerge combine a.safetensors b.safetensors -o merged
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(args: list[str] | None = None) -> None:
    """The `loramerge` script: run, turn every failure into a sentence, exit."""
    gc.disable()  # what is imported lives to the end: looking for garbage in it costs time
    with interrupted_once(), speaking("shell"), warnings.catch_warnings():
        warnings.showwarning = _told
        try:
            _show_anything()
            with ended_by_signals():
                code = loramerge.main(args, prog_name="loramerge", standalone_mode=False)
            if sys.stdout is not None:
                sys.stdout.flush()
        except BaseException as error:
            code = exit_code(error)
    sys.exit(code if isinstance(code, int) else 0)


def _show_anything() -> None:
    """Let no character stop the output: a path's raw bytes come out as they are, else an escape is shown."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        is_utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        sys.stdout.reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")


def _told(message: Warning | str, *_: object, **__: object) -> None:
    """What Python would show with a line of our code, such as a solver of a GPU that had to be replaced."""
    click.echo(f"warning: {message}", err=True)
