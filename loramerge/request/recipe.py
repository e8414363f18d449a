"""A merge asked for in a YAML file: what the command line can say, and weights and ranks by module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.algorithms import Method, make
from loramerge.errors import SourceError, UsageError, printable
from loramerge.hub.names import pinned
from loramerge.merge.plan import Plan, plan
from loramerge.request.effort import EFFORT, Effort
from loramerge.request.fields import Reader
from loramerge.request.schedule import Rule, Weight, plain
from loramerge.sources.expand import expand
from loramerge.sources.open import check_alphas, check_named, open_one, opened

LIMIT = 2**18
KEYS = (
    "sources",
    "method",
    "parameters",
    "alpha",
    "dtype",
    "profile",
    "total_rank",
    "size",
    "for",
    "max_rank",
    "only",
    "exclude",
    "allow_base_mismatch",
    "extras",
    "renormalise",
    "format",
    "scale",
    "descriptions",
    "embedding",
    "modules",
)
SOURCE = ("source", "weight", "revision")
Watch = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True, slots=True)
class Ingredient:
    """One source of a recipe; `revision` is that to fetch from the Hub, and only recorded of a local file."""

    source: str
    weight: Weight | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Recipe:
    """A merge as it was asked for, nothing settled yet."""

    sources: tuple[Ingredient, ...] = ()
    method: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    alpha: Any = None
    dtype: str | None = None
    profile: str | None = None
    total_rank: int | None = None
    size: float | str | None = None
    consumer: str | None = None
    max_rank: int | None = None
    only: str | None = None
    exclude: str | None = None
    allow_base_mismatch: bool = False
    extras: str = "refuse"
    renormalise: bool = False
    format: str | None = None
    scale: float | str | None = None
    descriptions: Mapping[str, str] | str | None = None
    embedding: str | None = None
    modules: tuple[Rule, ...] = ()

    @property
    def weights(self) -> list[Weight] | None:
        """One for each source, 1 where none is given; None if no source has one."""
        if all(each.weight is None for each in self.sources):
            return None
        return [1.0 if each.weight is None else each.weight for each in self.sources]

    def expanded(self) -> Recipe:
        """With the members of folders, lists and globs in their place."""
        members = [
            replace(each, source=source, weight=weight if each.weight is None else each.weight)
            for each in self.sources
            for source, weight in expand(pinned(each.source, each.revision) if each.revision else each.source)
        ]
        return replace(self, sources=tuple(members))

    def plan(
        self,
        effort: Effort = EFFORT,
        *,
        allow_pickle: bool = False,
        initial: Mapping[str, str | Path] | None = None,
        bare: bool | None = None,
        watch: Watch = iter,
    ) -> Plan:
        """What this recipe comes to; `watch` sees every source as it is opened. Errors as for `plan`.

        A recipe names no pickles, no initial adapters and no output: those are given beside it.
        """
        names = [each.source for each in self.sources]
        check_alphas(names, self.alpha)
        check_named(names, initial or {}, "initial")
        adapters = opened(names, lambda name: open_one(name, self.alpha, allow_pickle, initial), watch)
        return plan(
            [_marked(a, each.revision) for a, each in zip(adapters, self.sources, strict=True)],
            self._chosen(),
            weights=self.weights,
            rules=self.modules,
            dtype=self.dtype,
            profile=self.profile or "portable",
            total_rank=self.total_rank,
            size=self.size,
            bare=bare,
            consumer=self.consumer,
            max_rank=self.max_rank,
            only=self.only,
            exclude=self.exclude,
            allow_base_mismatch=self.allow_base_mismatch,
            extras=self.extras,
            renormalise=self.renormalise,
            format=self.format,
            scale=self.scale,
            descriptions=self.descriptions,
            embedding=self.embedding,
            effort=effort,
        )

    def _chosen(self) -> Method:
        given = {name: value for name, value in self.parameters.items() if value is not None}
        try:
            return make(self.method or "linear", given)
        except UsageError as error:  # it repeats what the file says
            raise UsageError(printable(error, 300)) from None

    def to_yaml(self) -> str:
        """The recipe as YAML; reading it gives the same recipe."""
        values: dict[str, Any] = {
            "sources": [_plain_source(each) for each in self.sources],
            "method": self.method or "linear",
            "parameters": dict(self.parameters),
            "alpha": dict(self.alpha) if isinstance(self.alpha, Mapping) else self.alpha,
            "dtype": self.dtype,
            "profile": self.profile,
            "total_rank": self.total_rank,
            "size": self.size,
            "for": self.consumer,
            "max_rank": self.max_rank,
            "only": self.only,
            "exclude": self.exclude,
            "allow_base_mismatch": self.allow_base_mismatch,
            "extras": None if self.extras == "refuse" else self.extras,
            "renormalise": self.renormalise,
            "format": self.format,
            "scale": self.scale,
            "descriptions": dict(self.descriptions)
            if isinstance(self.descriptions, Mapping)
            else self.descriptions,
            "embedding": self.embedding,
            "modules": [rule.to_plain() for rule in self.modules],
        }
        import yaml

        said = {key: value for key, value in values.items() if value not in (None, False, {}, [])}
        return str(yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=110))


def _marked(adapter: Adapter, revision: str | None) -> Adapter:
    """With the revision that the recipe names."""
    provenance = adapter.provenance
    if provenance.hub:  # fetched at that revision, and known by its commit
        return adapter
    return replace(adapter, provenance=replace(provenance, revision=revision or provenance.revision))


def _plain_source(each: Ingredient) -> dict[str, Any]:
    weight = None if each.weight is None else plain(each.weight)
    values = {"source": each.source, "weight": weight, "revision": each.revision}
    return {name: value for name, value in values.items() if value is not None}


def read(path: Path) -> Recipe:
    """The recipe in a YAML file.

    Raises:
        SourceError: it cannot be read, or is no YAML.   UsageError: it says what is not known, by name.
    """
    return parse(_load(path), printable(path))


def parse(values: Any, where: str) -> Recipe:
    """The recipe that these values are; messages call it `where`."""
    reader = Reader(f"{where} is no recipe", UsageError)
    if not isinstance(values, dict):
        reader.fail("it is no table of settings such as `sources:` and `method:`")
    if "schema" in values:
        reader.fail("it is the record of a merge; loramerge replay reads those")
    reader.keys(values, KEYS, "it")
    given = {key: value for key, value in values.items() if value is not None}
    return Recipe(
        tuple(_source(reader, value) for value in _list(reader, given, "sources")),
        parameters=_parameters(reader, given),
        alpha=_alpha(reader, given.get("alpha")),
        modules=tuple(reader.rule(value) for value in _list(reader, given, "modules")),
        total_rank=reader.typed(given, "total_rank", int) if "total_rank" in given else None,
        size=_size(reader, given.get("size")),
        consumer=reader.typed(given, "for", str) if "for" in given else None,
        max_rank=reader.typed(given, "max_rank", int) if "max_rank" in given else None,
        scale=reader.scale(given["scale"]) if "scale" in given else None,
        descriptions=_descriptions(reader, given.get("descriptions")),
        **{
            key: reader.typed(given, key, str)
            for key in ("method", "dtype", "profile", "format", "only", "exclude", "extras", "embedding")
            if key in given
        },
        **{
            key: reader.typed(given, key, bool)
            for key in ("allow_base_mismatch", "renormalise")
            if key in given
        },
    )


def _parameters(reader: Reader, values: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the method, which checks them itself."""
    found = reader.table(values, "parameters") if "parameters" in values else {}
    for name in found:
        if not isinstance(name, str):
            reader.fail(f"parameters has the key {printable(repr(name), 60)}")
    return found


def _alpha(reader: Reader, value: Any) -> Any:
    """A number, `rank`, or a table of source -> either."""
    if isinstance(value, dict):
        for source in value:
            if not isinstance(source, str):
                reader.fail(f"alpha names the source {printable(repr(source), 60)}, which is not text")
        return {source: _alpha(reader, each) for source, each in value.items() if not isinstance(each, dict)}
    return value if value is None or value == "rank" else reader.number(value, "alpha")


def _descriptions(reader: Reader, value: Any) -> dict[str, str] | str | None:
    """A table of source -> text, or the path of a file that holds one."""
    if value is None or isinstance(value, str):
        return value
    found = reader.table({"descriptions": value}, "descriptions")
    for source in found:
        if not isinstance(source, str):
            reader.fail(f"descriptions names the source {printable(repr(source), 60)}, which is not text")
        reader.typed(found, source, str)
    return found


def _size(reader: Reader, value: Any) -> float | str | None:
    """A number of bytes, or a text such as `20MB`."""
    return value if value is None or isinstance(value, str) else reader.number(value, "size")


def _list(reader: Reader, values: Mapping[str, Any], field: str) -> list[Any]:
    found: list[Any] = reader.typed(values, field, list) if field in values else []
    return found


def _source(reader: Reader, value: Any) -> Ingredient:
    if isinstance(value, str):
        return Ingredient(value)
    if not isinstance(value, dict):
        reader.fail("a source is neither a path nor a table with `source:` and `weight:`")
    reader.keys(value, SOURCE, "a source")
    given = {key: each for key, each in value.items() if each is not None}
    return Ingredient(
        reader.typed(given, "source", str),
        reader.weight(given["weight"]) if "weight" in given else None,
        reader.typed(given, "revision", str) if "revision" in given else None,
    )


def _loader() -> Any:
    """YAML's safe loader; aliases, which can make a few lines into gigabytes, and double keys are refused."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.constructor.ConstructorError(problem="aliases (*name) are not read")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value:
                if str(key.value) in seen:
                    raise yaml.constructor.ConstructorError(problem=f"the key {key.value!r} is there twice")
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

    return Loader


def _load(path: Path) -> Any:
    import yaml  # only for those who have a recipe

    name = printable(path, 1000)
    try:
        with path.open("rb") as stream:
            text = stream.read(LIMIT + 1)
    except OSError as error:
        raise SourceError(f"{name} cannot be read: {error.strerror}. Check the path.") from error
    if len(text) > LIMIT:
        raise SourceError(f"{name} has more than 256 KiB: it is no recipe.")
    try:
        return yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SourceError(f"{name} is not valid YAML: {_fault(error)}.") from None


def _fault(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f" in line {mark.line + 1}" if mark else ""
    return printable(f"{getattr(error, 'problem', None) or error}{line}")
