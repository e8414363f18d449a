"""How a reader makes what a page shows: its sources and all that was asked, in a shell and in Python."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.algorithms import METHODS, Method, name_of
from loramerge.checkpoints.tuned import Tuned
from loramerge.hub.escape import quoted, shell
from loramerge.pages.section import How
from loramerge.pages.subject import Subject
from loramerge.request.entry import taken
from loramerge.request.recipe_text import unsaid, written
from loramerge.request.request import FIELDS, Request

READ = ("alpha", "allow_pickle", "base")  # what `inspect` takes
HEADS = ("allow_pickle", "base")  # what `check` takes
ALONE = (
    "weights",
    "renormalise",
    "extras",
    "allow_base_mismatch",
    "allow_disjoint",
)  # say nothing of one source
PLACE = ("out", "overwrite")
IMPORT = "import loramerge as lm\n\n"


def looked(subject: Subject, name: str) -> How:
    """For a picture that only a page has."""
    if subject.merge is not None:
        made = merged(subject)
        lines = made.python.rpartition("\n")[0]
        command = f"{made.command} --report page.html" if made.command else ""
        return How(command, f"{lines}\nlm.report(merge).plot.{name}()", made.recipe)
    python = f"{IMPORT}{_report(subject)}.plot.{name}()"
    return How(_look(subject), python)


def inspected(subject: Subject) -> How:
    """For what `inspect` tells too, unless something was asked that it does not know."""
    if any(_fits(subject.recipe.request, READ)):
        return How(_look(subject), f'{IMPORT}print({_report(subject)}["sources"].table.rows)')
    each = f"lm.inspect(source{_arguments(subject.recipe.request, READ)})"
    python = f"for source in {_sources(subject)}:\n    print({each})"
    return How(_command(subject, "inspect", READ), f"{IMPORT}{python}")


def measured(subject: Subject) -> How:
    """For the spectra, which `inspect` lists."""
    found = looked(subject, "spectra")
    if any(_fits(subject.recipe.request, READ)):
        return found
    return replace(found, command=_command(subject, "inspect", READ, "--json"))


def checked(subject: Subject) -> How:
    """For what `check` tells."""
    each = f'lm.check(source, "vllm"{_arguments(subject.recipe.request, HEADS)})'
    python = f"{IMPORT}for source in {_sources(subject)}:\n    print({each})"
    return How(_command(subject, "check", HEADS), python)


def compared(subject: Subject) -> How:
    """For what `diff` tells about two sources."""
    found, names = looked(subject, "overlaps"), taken("diff")
    if len(subject.named) != 2 or any(_fits(subject.recipe.request, names)):
        return found
    return replace(found, command=_command(subject, "diff", names))


def forgone(subject: Subject) -> How:
    """For what merges of other sizes lose."""
    found = looked(subject, "losses")
    if subject.merge is not None:
        return replace(found, command=_by_recipe(subject, "--dry-run"))
    return replace(combined(subject, "svd", {}, "--dry-run"), python=found.python)


def combined(subject: Subject, method: str, options: Mapping[str, Any], after: str) -> How:
    """For a merge of the sources by a method. `after`: what ends the command."""
    request = Request(**dict(_given(subject.recipe.request, taken("report"))))  # all that methods share here
    recipe = replace(subject.recipe, method=method, parameters=options, request=request)
    if [*request.given()]:
        command = _by_recipe(replace(subject, recipe=recipe), after)
    else:
        flags = [f"--{name.replace('_', '-')} {value}" for name, value in options.items()]
        command = _command(subject, "combine", (), " ".join([f"--method {method}", *flags, after]))
    said = "".join(f", {name}={_python(value)}" for name, value in options.items())
    said += _arguments(request, taken("report"))
    python = f'{IMPORT}merge = lm.combine({_sources(subject)}, "{method}"{said})\nprint(merge.report)'
    return How(command, python, _recipe(replace(subject, recipe=recipe)))


def merged(subject: Subject) -> How:
    """For the merge that a page is about."""
    method = subject.recipe.named()[0].method
    options = "".join(f", {name}={_python(value)}" for name, value in subject.recipe.parameters.items())
    first = _method(method) if isinstance(method, Method) else f'"{method}"{options}'
    said = _arguments(subject.recipe.request, taken("combine"))
    python = f"{IMPORT}merge = lm.combine({_sources(subject)}, {first}{said})\nmerge.plot.layers()"
    place = "merged.safetensors" if subject.recipe.request.bare else "merged"
    after = f"-o {shell(subject.out or place)}"
    return How(_by_recipe(subject, after), python, _recipe(subject))


def _look(subject: Subject) -> str:
    """The command of a page."""
    methods = [f"--method {name}" for name in subject.methods]
    rank = [f"--rank {subject.rank}"] if subject.rank else []
    return _command(subject, "report", taken("report"), " ".join([*methods, *rank, "-o page.html"]))


def _report(subject: Subject) -> str:
    """The same page in Python."""
    said = _arguments(subject.recipe.request, taken("report"))
    said += f", methods={_python(subject.methods)}" if subject.methods else ""
    said += f", rank={subject.rank}" if subject.rank else ""
    return f"lm.report({_sources(subject)}{said})"


def _recipe(subject: Subject) -> str:
    """The recipe; "" if a source is only in memory, or the method is one that is made in Python alone."""
    method = subject.recipe.method
    plain = not isinstance(method, Method) or METHODS.get(name_of(method)) is type(method)
    return written(subject.recipe) if subject.words and plain else ""


def _by_recipe(subject: Subject, after: str) -> str:
    """The command of a merge that its recipe tells, and what a recipe does not."""
    if not _recipe(subject):
        return ""
    request = subject.recipe.request
    beside = [name for name in unsaid(subject.recipe) if name in taken("command") and name not in PLACE]
    flags = [flag for name in beside for flag in _flags(name, getattr(request, name)) or ()]
    return " ".join(["loramerge combine --recipe recipe.yaml", *flags, after])


def _command(subject: Subject, verb: str, names: Collection[str], after: str = "") -> str:
    """A command on the sources; "" if one has no name that a shell knows, or a setting cannot be typed."""
    flags = [_flags(name, value) for name, value in _given(subject.recipe.request, names)]
    if not subject.words or None in flags:
        return ""
    typed = [flag for each in flags for flag in each or ()]
    return " ".join(filter(None, ["loramerge", verb, *subject.words, *typed, after]))


def _given(request: Request, names: Collection[str]) -> Iterator[tuple[str, Any]]:
    """What was asked under these names that decides what is seen."""
    for field, value in request.given():
        even = field.name == "weights" and all(weight == 1 for weight in value)
        if field.name in names and field.part != "effort" and field.name not in PLACE and not even:
            yield field.name, value


def _fits(request: Request, names: Collection[str]) -> Iterator[str]:
    """What was asked that a verb does not know, although its answer would be another."""
    for name, _ in _given(request, taken("report")):
        if name not in names and name not in ALONE:
            yield name


def _flags(name: str, value: Any) -> list[str] | None:
    """A setting as words of a command; None if it cannot be typed."""
    option = f"--{FIELDS[name].option.replace('_', '-')}"
    if value is True:
        return [option]
    if isinstance(value, Mapping):
        return [f"{option} {shell(f'{key}={each}')}" for key, each in value.items()]
    if isinstance(value, tuple | list):
        plain = all(isinstance(each, int | float) for each in value)
        return [f"{option}={','.join(f'{each:g}' for each in value)}"] if plain else None
    return [f"{option} {shell(value)}"]


def _arguments(request: Request, names: Collection[str]) -> str:
    """What was asked, as arguments that follow others."""
    return "".join(f", {name}={_python(value)}" for name, value in _given(request, names))


def _sources(subject: Subject) -> str:
    """The sources as a list in Python."""
    named = subject.named
    shown = (f"<{type(s).__name__}>" if isinstance(s, Adapter | Tuned) else quoted(s, 1000) for s in named)
    return f"[{', '.join(shown)}]"


def _python(value: Any) -> str:
    """A value as Python."""
    if isinstance(value, str | Path):
        return quoted(value, 1000)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_python(key)}: {_python(each)}' for key, each in value.items())}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_python, value))}]"
    return repr(value) if isinstance(value, int | float | None) else f"lm.{value!r}"


def _method(method: Method) -> str:
    """A method as Python, with the methods that are in it."""
    found = {name: getattr(method, name) for name in method.names()}
    said = {name: value for name, value in found.items() if value != _usual(method, name)}
    shown = (f"{k}={_method(v) if isinstance(v, Method) else _python(v)}" for k, v in said.items())
    made = "only" if type(method).__name__ == "Only" else type(method).__name__
    return f"lm.{made}({', '.join(shown)})"


def _usual(method: Method, name: str) -> Any:
    """What an option is if nobody says it."""
    return next(each.default for each in fields(method) if each.name == name)
