"""Command-line options made from the fields of a request and of a method."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from loramerge.cli import values
from loramerge.cli.catalogue import ALSO, METHODS, WORDS
from loramerge.cli.groups import SOURCE, Command, Offered
from loramerge.cli.number import Number
from loramerge.cli.spec import Spec
from loramerge.cli.word import Word
from loramerge.request import kinds
from loramerge.request.default import DEFAULT
from loramerge.request.doors import TOLD
from loramerge.request.entry import taken
from loramerge.request.field import Field

FILTER_HELP = (
    "Also take the adapters on the Hub that fit: base_model=org/base, author=me, tag=math, search=text, "
    "limit=50 (default 20, the most downloaded first). Repeat it to narrow the choice."
)
Callback = Callable[..., Any]
Former = Mapping[str, tuple[str, tuple[str, ...]]]  # old name -> (new name, the words that it may be)


class Typed(click.ParamType[Any]):
    """A value that a kind of the request makes fit."""

    def __init__(self, kind: kinds.Kind) -> None:
        self.kind, self.name = kind, (kind.metavar or "value").lower()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.kind.fit(value)
        except kinds.Unfit as error:
            self.fail(f"{value!r} {error}.", param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, start: str) -> list[CompletionItem]:
        if self.kind.is_path:
            return [CompletionItem(start, type="file")]
        return [CompletionItem(word) for word in self.kind.offers if word.startswith(start)]


def _weights(*_: object) -> list[click.Option]:
    return [
        click.Option(["-w", "--weight", "each"], type=float, multiple=True,
            help="Weight of a source, in order; once for each.  [default: 1 each]"),
        click.Option(["--weights", "together"], metavar="W,W,...", help="All weights at once: 0.7,-0.3."),
    ]  # fmt: skip


def _descriptions(*_: object) -> list[click.Option]:
    return [
        click.Option(["--description", "told"], multiple=True, metavar="SOURCE=TEXT", callback=values.pairs,
            help="What a source is good at, for --method sg. Without it, descriptions.json beside the source "
            "says so, or its model card."),
        click.Option(["--descriptions"], type=SOURCE, metavar="FILE",
            help='The same for several sources, in a JSON file: {"SOURCE": "TEXT"}.'),
    ]  # fmt: skip


def _out(field: Field, door: str) -> list[click.Option]:
    name = STEM[door]
    shown = (
        name
        if door in ("restore", "extract", "fuse", "route", "report")
        else f"{name}.safetensors if all sources are bare files, else {name}"
    )
    told = f"{field.help}  [default: {shown}]"
    return [click.Option(["-o", "--out"], type=click.Path(path_type=Path), help=told)]


STEM = {
    "command": "merged",
    "resize": "resized",
    "replay": "replayed",
    "restore": "restored",
    "extract": "extracted",
    "fuse": "fused",
    "route": "bundle",
    "report": "report.html",
}
SPELT: dict[
    str, Callable[[Field, str], list[click.Option]]
] = {  # fields that the command line spells otherwise
    "weights": _weights,
    "descriptions": _descriptions,
    "out": _out,
}
REPEATED = {  # once for each source, or for each pair of names
    "alpha": values.alphas,
    "initial": values.pairs,
    "rename": values.renames,
    "names": values.pairs,
    "blocks": values.blocks,
}


def asks(door: str, *names: str) -> Callable[[Callback], Callback]:
    """The options of these fields, by default of all that the door takes, in their order."""
    known = taken(door)
    fields = [known[name] for name in names or known]
    fields = [each for each in fields if not isinstance(each.kind, kinds.Progress)]  # which nobody can type

    def add(command: Callback) -> Callback:
        told = [_at(door, field) for field in fields]
        found = [option for field in told for option in SPELT.get(field.name, _options)(field, door)]
        params: list[click.Parameter] = command.__dict__.setdefault("__click_params__", [])
        params.extend(reversed(found))  # as the decorators of click leave them
        return command

    return add


def _at(door: str, field: Field) -> Field:
    """The field as help tells it at a door."""
    said = TOLD.get((door, field.name))
    return dataclasses.replace(field, help=said.help, shown=said.shown or field.shown) if said else field


def _options(field: Field, door: str) -> list[click.Option]:
    kind, name = field.kind, f"--{field.option.replace('_', '-')}"
    shown = f"  [default: {field.shown}]" if field.shown else ""
    told: dict[str, Any] = {"help": f"{field.help}{shown}", "metavar": kind.metavar}
    if isinstance(kind, kinds.Flag):
        return [click.Option([name, field.name], is_flag=True, help=field.help)]
    if field.name in REPEATED:
        told |= {"multiple": True, "callback": REPEATED[field.name]}
        return [
            click.Option([name, field.name], type=SOURCE if kind.is_path else Offered(*kind.offers), **told)
        ]
    if isinstance(field.default, str):
        told |= {"default": field.default, "show_default": True}
    return [click.Option([name, field.name], type=_click_type(field, door), **told)]


def _click_type(field: Field, door: str) -> click.ParamType[Any]:
    kind, told = field.kind, TOLD.get((door, field.name))
    if isinstance(kind, kinds.Choice):
        return Word((told and told.words) or WORDS[field.name], ALSO.get(field.name, ()))
    if isinstance(kind, kinds.Whole):
        return click.IntRange(min=1)
    if isinstance(kind, kinds.Number):
        return Number(0, kind.high)
    return Typed(kind)


def typed(ctx: click.Context, door: str) -> dict[str, Any]:
    """What the user gave of the request: fields by name, as typed on this command line."""
    given = {
        name: value
        for name, value in ctx.params.items()
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    fields = {name: value for name, value in given.items() if name in taken(door)}
    if "told" in given or "descriptions" in given:
        fields["descriptions"] = values.descriptions(ctx.params["told"], ctx.params["descriptions"])
    if "each" in given or "together" in given:
        fields["weights"] = values.weights(ctx.params["each"], ctx.params["together"])
    return fields


def _canonical(method: str) -> str:
    """Our own name of the method. Raises UsageError: it is unknown; the sentence gives near names."""
    if method in METHODS:
        return method
    from loramerge.algorithms import find, name_of_class

    return name_of_class(find(method))


def options_of(method: str) -> list[click.Option]:
    """The options of a method, by its name."""
    return [spec.option() for spec in specs_of(method)]


def specs_of(method: str) -> tuple[Spec, ...]:
    """What a method of ours takes, without loading it; one of another package is loaded."""
    if (method := _canonical(method)) in METHODS:
        return METHODS[method].options
    from loramerge.algorithms import find
    from loramerge.cli.spec import specs

    return specs(find(method))


def former_of(method: str) -> Former:
    """Former names of the options of a method, with today's and the words that it may be."""
    if method in METHODS:
        entry = METHODS[method]
        return {old: (new, _words(entry.options, new)) for old, new in entry.former}
    from loramerge.algorithms import find

    return {old: (new, _words(specs_of(method), new)) for old, new in find(method).former.items()}


def _words(specs: Iterable[Spec], name: str) -> tuple[str, ...]:
    return next(spec.choices for spec in specs if spec.name == name)


class MethodCommand(Command):
    """A command whose options include those of the method named by --method."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        said = _named(args, "--method")
        if ctx.resilient_parsing:  # the shell completes what is half typed
            name = next((each for each in METHODS if each == said), DEFAULT)
        else:
            said = _of_recipe(_named(args, "--recipe")) if said is None else said
            name = _canonical(DEFAULT if said is None else said)
            ctx.meta["named"] = None if said is None else name
        ctx.meta["method"] = name  # whose options are read
        try:
            return super().parse_args(ctx, _current(args, former_of(name)))
        except click.NoSuchOption as error:
            field = error.option_name.lstrip("-").replace("-", "_")
            if any(field in method.names for method in METHODS.values()):
                from loramerge.algorithms import not_an_option

                raise click.UsageError(f"--{not_an_option(field, name)}", ctx) from None
            from loramerge.algorithms.names import foreign

            if (told := foreign(field)) is not None:
                raise click.UsageError(told, ctx) from None
            raise

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = options_of(ctx.meta.get("method", DEFAULT))
        *params, help = super().get_params(ctx)
        return [*params, *own, help]


def _current(args: list[str], former: Former) -> list[str]:
    """The arguments with options of the method under today's names, where their value is a word of theirs."""
    made = list(args)
    for i, word in enumerate(args):
        name, equals, value = word.partition("=")
        new, words = former.get(name.removeprefix("--"), ("", ()))
        if name.startswith("--") and (value if equals else "".join(args[i + 1 : i + 2])) in words:
            made[i] = f"--{new}{equals}{value}"
    return made


def _named(args: list[str], option: str) -> str | None:
    """The last value of an option, before anything is parsed."""
    found: str | None = None
    for word, following in itertools.pairwise([*args, None]):
        if word == option:
            found = following
        elif word is not None and word.startswith(f"{option}="):
            found = word.partition("=")[2]
    return found


def _of_recipe(path: str | None) -> str | None:
    """The method of a recipe."""
    if not path:
        return None
    from loramerge.request.recipe_text import read  # YAML is for those who have a recipe

    method = read(Path(path)).method
    return method if isinstance(method, str) else None
