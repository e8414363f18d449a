"""A recipe as YAML, read as a stranger's file: bounded, without aliases, every value checked by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from loramerge.adapters.original import read_text
from loramerge.algorithms import Method, name_of, options_of
from loramerge.checkpoints.tuned import RANK, Tuned
from loramerge.errors import SourceError, UsageError, printable
from loramerge.request.default import SUM
from loramerge.request.entry import taken
from loramerge.request.mergekit import is_mergekit, translated
from loramerge.request.peft_call import refuse_call
from loramerge.request.reader import Reader
from loramerge.request.recipe import Ingredient, Recipe
from loramerge.request.request import FIELDS, Request
from loramerge.request.rules import Rule, plain
from loramerge.request.strangers import check_patterns
from loramerge.request.yaml import as_yaml

LIMIT = 2**18
DIGITS = 24  # of a whole number
TAG = "tag:yaml.org,2002:"  # before the names that YAML itself gives to kinds
SOURCE = ("source", "weight", "revision")
TUNED = ("tuned", "base", "rank", "weight")  # a tuned model in the place of an adapter
OWN = ("sources", "method", "parameters")  # keys that are no field of the request


def keys() -> dict[str, str]:
    """Key in a recipe -> field. Weights stand beside their sources."""
    return {each.key: name for name, each in taken("recipe").items() if name != "weights"}


def written(recipe: Recipe) -> str:
    """The recipe as YAML; reading it gives the same recipe."""
    named = keys().values()
    given = {each.key: _plain(value) for each, value in recipe.request.given() if each.name in named}
    method: str | Method = recipe.named()[0].method or SUM
    name, parameters = method, dict(recipe.parameters)
    if isinstance(method, Method):
        name, parameters = name_of(method), options_of(method)
    weights = recipe.request.weights
    if weights is not None and len(weights) == len(recipe.sources):
        sources = [_source(replace(each, weight=w)) for each, w in zip(recipe.sources, weights, strict=True)]
    else:
        sources = [_source(each) for each in recipe.sources]
    values: dict[str, Any] = {"sources": sources, "method": name}
    values |= {"parameters": parameters} if parameters else {}
    return as_yaml({**values, **given})


def unsaid(recipe: Recipe) -> list[str]:
    """What was asked for that a recipe does not say: fields, by name."""
    said = {*keys().values(), "weights"}
    return [each.name for each, _ in recipe.request.given() if each.name not in said]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value.to_plain() if isinstance(value, Rule) else str(value) if isinstance(value, Path) else value


def _source(each: Ingredient) -> dict[str, Any]:
    weight = None if each.weight is None else plain(each.weight)
    values: dict[str, Any] = {"source": str(each.source), "weight": weight, "revision": each.revision}
    if isinstance(each.source, Tuned):
        tuned, base = str(each.source.tuned), str(each.source.base)
        values = {"tuned": tuned, "base": base, "rank": each.source.rank, "weight": weight}
    return {name: value for name, value in values.items() if value is not None}


def read(path: Path) -> Recipe:
    """The recipe in a YAML file.

    Raises:
        SourceError: it cannot be read, or is no YAML.   UsageError: it says what is not known, by name.
    """
    return parse(_load(path), printable(path))


def parse(values: Any, where: str) -> Recipe:
    """The recipe that these values are; messages call it `where`."""
    reader = Reader(f"{where} is not a recipe", UsageError)
    if not isinstance(values, dict):
        reader.fail("it is not a table of settings such as `sources:` and `method:`")
    if "schema" in values:
        reader.fail("it is the record of a merge; loramerge replay reads those")
    if is_mergekit(values):
        raise UsageError(f"{where} is not a loramerge recipe: {translated(values)}")
    known = keys()
    reader.keys(values, (*OWN, *known), "it")
    given = {key: value for key, value in values.items() if value is not None}
    fields = {known[key]: reader.field(FIELDS[known[key]], given[key], key) for key in known if key in given}
    request = Request(**fields)
    check_patterns(request, where)
    return Recipe(
        tuple(_ingredient(reader, value) for value in reader.many(given, "sources")),
        # a recipe is kept and run again, and those of before there was another default mean the sum
        reader.typed(given, "method", str) if "method" in given else SUM,
        _parameters(reader, given),
        request,
    )


def _parameters(reader: Reader, values: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the method, which checks them itself."""
    found = reader.table(values, "parameters") if "parameters" in values else {}
    for name in found:
        if not isinstance(name, str):
            reader.fail(f"parameters has the key {printable(repr(name), 60)}")
    return found


def _ingredient(reader: Reader, value: Any) -> Ingredient:
    if isinstance(value, str):
        return Ingredient(value)
    if not isinstance(value, dict):
        reader.fail("a source is neither a path nor a table with `source:` and `weight:`")
    reader.keys(value, TUNED if "tuned" in value else SOURCE, "a source")
    given = {key: each for key, each in value.items() if each is not None}
    if "tuned" in given:
        return _tuned(reader, given)
    return Ingredient(
        reader.typed(given, "source", str),
        reader.weight(given["weight"]) if "weight" in given else None,
        reader.typed(given, "revision", str) if "revision" in given else None,
    )


def _tuned(reader: Reader, given: Mapping[str, Any]) -> Ingredient:
    """``{tuned: PATH, base: PATH, rank: 16}``"""
    if "base" not in given:
        reader.fail("a source has a tuned model and no base, the model that it was before")
    tuned, base = (reader.typed(given, key, str) for key in ("tuned", "base"))
    rank = reader.typed(given, "rank", int) if "rank" in given else RANK
    weight = reader.weight(given["weight"]) if "weight" in given else None
    return Ingredient(Tuned(tuned, base, rank), weight)


def _loader() -> Any:
    """YAML's safe loader; aliases, which can make a few lines into gigabytes, and double keys are refused."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.constructor.ConstructorError(problem="aliases (*name) are not read")
            return super().compose_node(parent, index)

        def construct_scalar(self, node: Any) -> Any:
            if str(node.tag).endswith(":int") and len(node.value) > DIGITS:
                raise yaml.constructor.ConstructorError(problem="a number in it is too large")
            return super().construct_scalar(node)

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
                fault = f"{printable(repr(node.value), 60)} is no !!{str(node.tag).removeprefix(TAG)}"
                raise yaml.constructor.ConstructorError(problem=fault, problem_mark=node.start_mark) from None

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                if not isinstance(key, yaml.ScalarNode):
                    raise yaml.constructor.ConstructorError(
                        problem="a key is a list or a table", problem_mark=key.start_mark
                    )
                if str(key.value) in seen:
                    raise yaml.constructor.ConstructorError(problem=f"the key {key.value!r} is there twice")
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

    for kind in ("binary", "set", "omap", "pairs"):  # of Python more than of recipes
        Loader.add_constructor(f"{TAG}{kind}", _refused)
    Loader.add_constructor(
        f"{TAG}timestamp", Loader.construct_scalar
    )  # a date may be a name, such as a revision
    return Loader


def _refused(_: Any, node: Any) -> Any:
    import yaml

    problem = f"!!{node.tag.removeprefix(TAG)} means nothing in a recipe"
    raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)


def _load(path: Path) -> Any:
    import yaml  # only for those who have a recipe

    name = printable(path, 1000)
    text = read_text(path, str(path), LIMIT)
    if len(text) > LIMIT:
        raise SourceError(f"{name} has more than 256 KiB: it is not a recipe.")
    refuse_call(text.decode("utf-8", "replace"))
    try:
        return yaml.load(text, Loader=_loader())
    except RecursionError:
        raise SourceError(f"{name} is not valid YAML: it is nested too deeply.") from None
    except yaml.YAMLError as error:
        raise SourceError(f"{name} is not valid YAML: {_fault(error)}.") from None
    except (ValueError, OverflowError):  # PyYAML asks Python for the character, whatever its number
        raise SourceError(
            f"{name} is not valid YAML: an escape such as \\U00110000 stands for no character."
        ) from None


def _fault(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f" in line {mark.line + 1}" if mark else ""
    told = getattr(error, "problem", None) or getattr(error, "reason", None) or error
    return printable(f"{told}{line}")
