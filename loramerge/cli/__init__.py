"""The command line: parse, call one library function, print. Commands are imported when they are called."""

from __future__ import annotations

import io
import sys
from importlib import import_module

import click

from loramerge import __version__
from loramerge.cli.downloads import one_bar
from loramerge.cli.failures import exit_code

COMMANDS = {  # name -> one line for --help; the module and the function have the same name
    "combine": "Merge adapters into one adapter.",
    "convert": "Write an adapter in another format.",
    "diff": "Compare two adapters module by module.",
    "check": "Find out what other programs would do with an adapter.",
    "inspect": "Show modules, ranks, scales and spectra of adapters.",
    "push": "Upload an adapter to the Hub, with a card.",
    "resize": "Make one adapter smaller, losing as little as possible.",
    "restore": "Bring one task back from a merge with masks.",
    "replay": "Repeat a recorded merge, and compare.",
    "methods": "List the methods, or explain one.",
}


class LazyGroup(click.Group):
    """A group that imports a command only when it runs, so that --help needs no NumPy."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"loramerge.cli.{cmd_name}"), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            with one_bar():
                return super().invoke(ctx)
        except BrokenPipeError:  # the reader has seen enough; click would call it a failure
            raise click.exceptions.Exit(0) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


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
      loramerge combine a.safetensors b.safetensors --method lego -o merged
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(args: list[str] | None = None) -> None:
    """The `loramerge` script: run, turn every failure into a sentence, exit."""
    try:
        _show_anything()
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
