"""Options in groups, as the parts of a request: what belongs together stands together in help."""

from __future__ import annotations

import os
from typing import Any

import click
from click.shell_completion import CompletionItem

from loramerge.cli.catalogue import METHODS
from loramerge.cli.narrow import Context
from loramerge.request.request import FIELDS

TITLES = {  # part -> heading, in the order of help
    "sources": "Sources",
    "method": "Method",
    "strength": "Strength",
    "size": "Size",
    "output": "Output",
    "hub": "Hub",
    "effort": "Machine",
    "": "Options",
}
OTHERS = {  # options that are no fields of a request, and the part that they stand with
    **dict.fromkeys(
        ("each", "together", "told", "filters", "recipe", "sources", "subtract", "pruned"), "sources"
    ),
    **dict.fromkeys(("method", "methods", "task", "inputs", "gate", "table"), "method"),
    **dict.fromkeys(("rank", "energy"), "size"),
    **dict.fromkeys(("print_recipe", "dense_delta", "whole_model", "spread", "dry_run", "to"), "output"),
    **dict.fromkeys(("as_json", "quiet", "consumers", "page", "overlap", "groups", "by_block"), "output"),
    **dict.fromkeys(("repo", "private", "download", "revision", "create_pr"), "hub"),
}
FEW = 8  # options that one list shows well


def part_of(option: click.Parameter) -> str:
    """The part that an option belongs to; one that nobody has heard of is that of a method."""
    if option.name in FIELDS:
        return FIELDS[option.name].part
    return "" if "--help" in option.opts else OTHERS.get(option.name or "", "method")


class Command(click.Command):
    """A command whose help has its options in groups, if they are many."""

    context_class = Context

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        params = [each for each in self.get_params(ctx) if isinstance(each, click.Option)]
        if len(params) <= FEW:
            return super().format_options(ctx, formatter)
        for part, title in TITLES.items():
            records = [each.get_help_record(ctx) for each in params if part_of(each) == part]
            if rows := [record for record in records if record is not None]:
                with formatter.section(title):
                    formatter.write_dl(rows)
        return None


class Source(click.ParamType[str]):
    """A source is any text; the shell completes it as a path, files and folders alike."""

    name = "source"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return os.fspath(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, start: str) -> list[CompletionItem]:
        return [CompletionItem(start, type="file")]


class Method(click.ParamType[str]):
    """The name of a method, in any spelling; the shell completes those of ours."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, start: str) -> list[CompletionItem]:
        found = {name: entry for name, entry in METHODS.items() if name.startswith(start)}
        return [CompletionItem(name, help=entry.summary) for name, entry in found.items()]


class Offered(click.ParamType[str]):
    """Any text; the shell offers some words for it."""

    name = "text"

    def __init__(self, *words: str) -> None:
        self.words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, start: str) -> list[CompletionItem]:
        return [CompletionItem(word) for word in self.words if word.startswith(start)]


SOURCE, METHOD = Source(), Method()
