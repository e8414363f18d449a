"""Command-line options made from the fields of a method."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from pathlib import Path
from typing import Any

import click

from loramerge.algorithms import METHODS, Method, find, not_an_option
from loramerge.algorithms.method import Interval, choices

DEFAULT = "linear"
CONSUMERS = "peft transformers vllm sglang llama.cpp diffusers comfyui mlx".split()  # without loading them
FILTER_HELP = (
    "Also the adapters of the Hub that fit: base_model=org/base, author=me, tag=math, search=text, limit=50 "
    "(20 unless said, the most downloaded first); repeat it to narrow."
)
PICKLE_HELP = "Read .bin and .pt files too, without running what they contain."


def from_fields(method: type[Method]) -> list[click.Option]:
    """One option per field: type, interval, choices and help come from its declaration."""
    hints = typing.get_type_hints(method)
    return [
        _option(field, hints[field.name]) for field in dataclasses.fields(method) if "help" in field.metadata
    ]


def _option(field: dataclasses.Field[Any], hint: Any) -> click.Option:
    return click.Option(
        [f"--{field.name.replace('_', '-')}", field.name],
        type=_type(field, hint),
        default=field.default,
        show_default=field.default is not None,
        help=field.metadata["help"],
    )


def _type(field: dataclasses.Field[Any], hint: Any) -> click.ParamType[Any]:
    if words := choices(field, hint):
        return click.Choice(words)
    kinds = typing.get_args(hint) or (hint,)
    if str in kinds:
        return click.STRING
    bounds = field.metadata.get("interval") or Interval()
    if float in kinds:
        return click.FloatRange(bounds.low, bounds.high, min_open=bounds.low_open)
    low, high = (None if b is None else int(b) for b in (bounds.low, bounds.high))
    return click.IntRange(low, high)


class MethodCommand(click.Command):
    """A command whose options include those of the method named by --method."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        name = _named(args, "--method") or _of_recipe(_named(args, "--recipe")) or DEFAULT
        find(name)
        ctx.meta["method"] = name
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            field = error.option_name.lstrip("-").replace("-", "_")
            if any(field in cls.names() for cls in METHODS.values()):
                sentence = not_an_option(field, name)
                raise click.UsageError(f"--{sentence}", ctx) from None
            raise

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = from_fields(find(ctx.meta.get("method", DEFAULT)))
        *params, help = super().get_params(ctx)
        return [*params, *own, help]


def _named(args: list[str], option: str) -> str | None:
    """The last value of an option, before anything is parsed."""
    found = None
    for word, following in itertools.pairwise([*args, ""]):
        if word == option:
            found = following
        elif word.startswith(f"{option}="):
            found = word.partition("=")[2]
    return found


def _of_recipe(path: str | None) -> str | None:
    """The method of a recipe."""
    if not path:
        return None
    from loramerge.request.recipe import read  # YAML is for those who have a recipe

    return read(Path(path)).method
