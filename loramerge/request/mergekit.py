"""A recipe of mergekit, told in the words of a recipe of ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from loramerge.algorithms import find, name_of_class
from loramerge.errors import UsageError, printable
from loramerge.request.yaml import as_yaml

SAME = ("density", "gamma", "epsilon")  # parameters that have one name here and there
READ = ("merge_method", "base_model", "models", "parameters")
HEAD = "it is a recipe of mergekit, which merges whole models. For adapters it reads here:"


def is_mergekit(values: Mapping[Any, Any]) -> bool:
    """Whether these are the keys of mergekit."""
    return "merge_method" in values


def translated(values: Mapping[Any, Any]) -> str:
    """How it reads here, as a sentence and YAML. Base models are no sources: adapters need none."""
    name, told = _method(printable(values["merge_method"], 60))
    models = [each for each in _of(list, values, "models") if isinstance(each, dict)]
    shared = _of(dict, values, "parameters")
    tables = [*(_of(dict, each, "parameters") for each in models), shared]
    options = {key: table[key] for table in tables for key in SAME if _is_number(table.get(key))}
    options = {key: value for key, value in options.items() if key in find(name).names()}
    here: dict[str, Any] = {"sources": [_source(each) for each in models] or ["PATH"], "method": name}
    here |= {"parameters": options} if options else {}
    here |= {"scale": shared["lambda"]} if _is_number(shared.get("lambda")) else {}
    known = options | ({"lambda": shared["lambda"]} if "scale" in here else {})
    left = [*_left(tables, known), *(key for key in map(str, values) if key not in READ)]
    lost = f"# without: {printable(', '.join(dict.fromkeys(left)))}\n" if left else ""
    return f"{HEAD}\n\n{as_yaml(here)}{lost}{told}"


def _left(tables: Iterable[Mapping[Any, Any]], here: Mapping[str, Any]) -> Iterator[str]:
    """The parameters that the answer does not have, or has with another value."""
    for table in tables:
        for key, value in table.items():
            weight = key == "weight" and _is_number(value)
            if not weight and (key not in here or here[key] != value):
                yield f"{key} {value}" if key in here and _is_number(value) else str(key)


def _method(name: str) -> tuple[str, str]:
    """Our name of a method; or the nearest plain one, and a remark about theirs."""
    try:
        return name_of_class(find(name)), ""
    except UsageError as error:
        return "linear", f"\n{error}"


def _source(model: Mapping[str, Any]) -> Any:
    """`base+adapter` names the adapter after the plus."""
    path = str(model.get("model", "PATH")).rpartition("+")[2]
    weight = _of(dict, model, "parameters").get("weight")
    return {"source": path, "weight": weight} if _is_number(weight) else path


def _of(kind: type, values: Mapping[str, Any], key: str) -> Any:
    """What stands there, if it is of this type; else nothing of that type."""
    found = values.get(key)
    return found if isinstance(found, kind) else kind()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
