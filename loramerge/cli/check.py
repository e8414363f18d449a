"""`loramerge check`."""

from __future__ import annotations

import shutil
import textwrap
from typing import Any

import click

from loramerge.cli import show
from loramerge.cli.downloads import listed
from loramerge.cli.groups import SOURCE, Command
from loramerge.cli.options import asks
from loramerge.cli.word import Word
from loramerge.consumers import CONSUMERS, find, meant
from loramerge.consumers.bundles import examined
from loramerge.consumers.consumer import UNABLE, Consumer
from loramerge.consumers.facts import Facts
from loramerge.consumers.finding import Finding, loads
from loramerge.errors import LoramergeError, printable
from loramerge.formats.bundles import is_bundle
from loramerge.formats.dialects import named
from loramerge.formats.peft.names import UNKNOWN
from loramerge.merge.tables import wrapped
from loramerge.sources.expand import expand
from loramerge.verbs.check import looked_at

BREAKS = 3  # exit code: somebody would refuse it, or make something else of it
UNTOLD = 5  # … nobody does so, and of some program it cannot be told
WIDTH, MARGIN = 100, " " * 14
MEND = f"{MARGIN}mend: "


@click.command(cls=Command)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...", type=SOURCE)
@click.option("--for", "consumers", multiple=True, type=Word(list(CONSUMERS)),
    help="The program to ask about; repeat it for several.  [default: all that the adapter may be "
    "meant for]")  # fmt: skip
@click.option("--max-rank", type=click.IntRange(min=1), help="The largest rank that the "
    "program load.  [default: the program's own; 16 for vLLM]")  # fmt: skip
@asks("combine", "allow_pickle", "base")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def check(
    ctx: click.Context,
    sources: tuple[str, ...],
    consumers: tuple[str, ...],
    max_rank: int | None,
    allow_pickle: bool,
    base: str | None,
    as_json: bool,
) -> None:
    """Find out what the programs that load adapters would do with yours, and how to mend it.

    A program may refuse an adapter. It may also scale it wrongly, or ignore a part of it, and say nothing.
    Only headers are read, also on the Hub. The exit code is 3 if a program would not load an adapter as
    it is meant, and 5 if that cannot be told.

    \b
    Example:
      loramerge check merged org/name@v1 --for vllm --for sglang
    """
    failures: list[LoramergeError] = []
    shown: list[dict[str, Any]] = []
    members = [
        member
        for source in sources
        for each in listed(source)
        for member, _ in ([(each, None)] if is_bundle(each) else expand(each))
    ]
    for member in members:
        try:
            facts = looked_at(member, allow_pickle, base)
        except LoramergeError as error:
            failures.append(error)
            show.note(f"Error: {error}")
            continue
        wanted = [find(name) for name in consumers] or meant(facts)
        found = {consumer: examined(consumer, facts, max_rank) for consumer in wanted}
        shown.append(_plain(facts, found))
        if not as_json:
            click.echo(_text(facts, found) + "\n" * (len(members) > 1))
    if as_json:
        show.data({"adapters": shown})
    if failures:
        ctx.exit(failures[0].exit_code)
    answers = {row["loads"] for each in shown for row in each["consumers"]}
    if answers - {True}:
        ctx.exit(BREAKS if False in answers else UNTOLD)


def _plain(facts: Facts, found: dict[Consumer, list[Finding]]) -> dict[str, Any]:
    rows = [
        {
            "consumer": consumer.name,
            "version": consumer.version,
            "loads": loads(findings),
            "findings": [finding.to_dict() for finding in findings],
        }
        for consumer, findings in found.items()
    ]
    return {"source": facts.path, "tensor_names": facts.dialect, "consumers": rows}


def _text(facts: Facts, found: dict[Consumer, list[Finding]]) -> str:
    what = "of no format that is known here" if facts.dialect == UNKNOWN else named(facts.dialect).words
    what = f"a routed bundle of {len(facts.experts)} PEFT adapters" if facts.experts else what
    where = "in a folder with its config" if facts.folder else "in one file"
    count = f"{len(facts.tensors)} tensor{'s' if len(facts.tensors) != 1 else ''}"
    lines = wrapped([f"{printable(facts.path)}: {what} {where}, {count}"])
    for consumer, findings in found.items():
        lines += _said(f"{consumer.name:<13} ", findings) or [f"{consumer.name:<13} loads it as it is meant"]
    return "\n".join(lines)


def _said(start: str, findings: list[Finding]) -> list[str]:
    """The lines about one program; what mends several findings is said after the last of them."""
    lines = []
    for number, finding in enumerate(findings):
        lines += _wrapped(finding.sentence, MARGIN if number else start)
        if finding.mend and all(finding.mend != other.mend for other in findings[number + 1 :]):
            lines += _wrapped(finding.mend, MARGIN if finding.mend.startswith(UNABLE) else MEND)
    return [*lines, MEND + findings[-1].command] if findings and findings[-1].command else lines


def _wrapped(text: str, start: str) -> list[str]:
    """For the width of the terminal, if it is narrow; names are not broken."""
    width = max(40, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))
    return textwrap.wrap(
        text,
        width,
        initial_indent=start,
        subsequent_indent=MARGIN,
        break_long_words=False,
        break_on_hyphens=False,
    )
