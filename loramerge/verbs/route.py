"""Keep adapters apart, with a gate that chooses by the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loramerge.adapters.adapter import Adapter, BaseModel
from loramerge.adapters.arguments import checked
from loramerge.adapters.base_models import common_base, without_folders
from loramerge.adapters.patterns.search import searcher
from loramerge.arrays import dtypes
from loramerge.errors import IncompatibleError, UsageError, printable, say
from loramerge.formats import load
from loramerge.formats.bundles import is_bundle
from loramerge.formats.files.destination import ROUTER, check_apart
from loramerge.formats.peft import portable
from loramerge.hub.choice import BundleThere
from loramerge.hub.fetch import fetch
from loramerge.hub.names import hub_name
from loramerge.merge.record import hashing, scales_digest
from loramerge.request.entry import taken
from loramerge.request.recipe import Ingredient, Recipe, Source
from loramerge.request.request import Request
from loramerge.request.signature import spelled
from loramerge.routing.bundle import Bundle
from loramerge.routing.experts import Experts
from loramerge.routing.folder import write_bundle
from loramerge.routing.gates.gate import DataFree, Gate, stored_as
from loramerge.routing.gates.names import GATES, free, make, name_of
from loramerge.routing.gates.static import Static
from loramerge.routing.gates.task import Task
from loramerge.routing.imports.foreign import Foreign, averaged
from loramerge.routing.reader import load_bundle
from loramerge.routing.record import described, recorded
from loramerge.sources.expand import expanded
from loramerge.sources.sources import Sources, open_together
from loramerge.verbs.tasks import bundle_of_tasks, has_tasks

DEFAULT = "arrow"


@spelled("route", options=True)
@checked("gate", "subtract")
def route(
    sources: Sequence[Source],
    gate: str | Gate | None = None,
    *,
    subtract: Sequence[Source] = (),
    out: str | Path | None = None,
    **asked: Any,
) -> Bundle:
    """Keep adapters apart in a bundle whose gate weighs them for each token.

    Args:
        sources: as for `combine`.
        gate: a name of ``loramerge.GATES`` with its `options`, or a gate such as ``GATES["smile"](top_k=2)``.
            None: `arrow`, or the gate that comes with the source.
        subtract: adapters of what all tasks share: the mean of their ΔW is taken away from every source
            (GenKnowSub).
        out: the folder to write; PEFT's `create_arrow_model` loads what is in it. None: keep in memory.
        {asked}
        options: options of the gate, if it is given by name.

    Returns:
        Bundle: read from `out` if that is given.

    Raises:
        UsageError, SourceError, IncompatibleError, OutputError: a sentence each.
        VerificationError: what was read back is not what was written; `out` is left as it was.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> along = [lm.LowRank(np.ones((2, 1)), np.eye(2)[e : e + 1]) for e in range(2)]
    >>> pair = [lm.Adapter.of({"q": update}, name) for name, update in zip("ab", along)]
    >>> bundle = route(pair, "arrow", top_k=1)
    >>> print(bundle.explain("q", np.array([[3.0, 1.0], [0.0, 2.0]])).first)
    ['a', 'b']
    """
    here, known = taken("route"), {name for each in GATES.values() for name in each.names()}
    options = {name: asked.pop(name) for name in [*asked] if name in known and name not in here}
    recipe = Recipe.of("route", sources, None, {"out": out, **asked})
    return routed(recipe, gate, options, subtract)


def routed(
    recipe: Recipe, gate: str | Gate | None, options: Mapping[str, Any], subtract: Sequence[Source] = ()
) -> Bundle:
    """The bundle of a recipe, written where its request says."""
    if len(recipe.sources) == 1 and is_bundle(recipe.sources[0].source):
        return _regated(recipe, gate, options, subtract)
    if len(recipe.sources) == 1 and has_tasks(recipe.sources[0].source):
        return _of_tasks(recipe, gate, options, subtract)
    recipe, request = expanded(recipe), recipe.request
    try:
        files = foreign(recipe)
    except BundleThere:
        if len(recipe.sources) > 1:
            raise
        return _regated(recipe, gate, options, subtract)
    if files:
        return _imported(files, recipe, gate, options, subtract)
    made, general = _gate(gate, options, request), expanded(Recipe(tuple(map(Ingredient, subtract))))
    whole = replace(recipe, sources=(*recipe.sources, *general.sources))
    sources, count = open_together(whole.asking(format="peft")), len(recipe.sources)
    check_beside(sources.adapters, request.extras)
    kind = dtypes.widest(a.dtype for a in sources.adapters if a)
    kind = kind if request.dtype is None else dtypes.parse(request.dtype)
    check_dtype(made, request)
    experts = Experts(sources.adapters[:count], sources.adapters[count:], kind, sources.notes)
    if isinstance(made, Task) and made.tasks is None:
        made = Task(tasks=[each.name for each in experts.adapters])
    bundle = experts.bundle(made, base_of(sources.whole), config_of(sources, experts))
    return bundle if request.out is None else written(bundle, sources, count, request)


def _regated(
    recipe: Recipe, gate: str | Gate | None, options: Mapping[str, Any], subtract: Sequence[Source]
) -> Bundle:
    """A bundle under another gate; what is recorded of its adapters stays."""
    request, source = recipe.request, recipe.sources[0].source
    changed = {"subtract": subtract or None, "dtype": request.dtype, "rename": request.rename}
    if said := next((name for name, value in changed.items() if value is not None), None):
        raise UsageError(f"{say(said)} is for adapters, and {printable(source)} is a bundle already.")
    if gate is None and not options:
        raise UsageError(f"{printable(source)} is a bundle already: say with {say('gate')} which other gate.")
    bundle = chosen(load_bundle(str(source)), request).gated(_gate(gate, options, request))
    if request.out is None:
        return bundle
    check_apart(request.out, [], [Path(str(source)) / ROUTER])
    write_bundle(bundle, request.out, request.overwrite, effort=request.effort, tell=request.tell)
    return load_bundle(request.out)


def _of_tasks(
    recipe: Recipe, gate: str | Gate | None, options: Mapping[str, Any], subtract: Sequence[Source]
) -> Bundle:
    """The tasks of a merge with masks, under its router or another gate."""
    request, place = recipe.request, Path(str(recipe.sources[0].source))
    if subtract:
        raise UsageError(f"{say('subtract')} is for adapters, and {printable(place)} is a merge with masks.")
    bundle = chosen(bundle_of_tasks(place, request), request)
    if gate is not None or options or request.weights is not None:
        bundle = bundle.gated(_gate(gate or "smile", options, request))
    if request.out is None:
        return bundle
    check_apart(request.out, [load(place)])
    write_bundle(bundle, request.out, request.overwrite, effort=request.effort, tell=request.tell)
    return replace(load_bundle(request.out), notes=bundle.notes)


def foreign(recipe: Recipe) -> list[Foreign]:
    """The sources that bring their own gate, where all of them do.

    Raises:
        UsageError: some do, and others are adapters.
    """
    alpha = recipe.request.alpha
    given = float(alpha) if isinstance(alpha, int | float) else None
    found = [_foreign(each.source, given, recipe.request.allow_pickle) for each in recipe.sources]
    files = [each for each in found if each is not None]
    if files and len(files) < len(found):
        raise UsageError(
            f"{files[0].given.where} brings its own gate, so no other adapters can stand under it."
        )
    return files


def _foreign(source: Source, alpha: float | None, allow_pickle: bool) -> Foreign | None:
    """The file of a source, if it brings its own gate."""
    if not isinstance(source, str | Path):
        return None
    if (name := hub_name(source)) is None:
        return Foreign.at(Path(source), alpha, allow_pickle)
    found = fetch(name, allow_pickle)
    made = Foreign.at(found.path, alpha, allow_pickle, name.shown)
    if made is None:
        return None
    return replace(made, hub={"hub": found.name.place, "revision": found.commit})


def _imported(
    files: Sequence[Foreign],
    recipe: Recipe,
    gate: str | Gate | None,
    options: Mapping[str, Any],
    subtract: Sequence[Source],
) -> Bundle:
    """The bundle of a file that brings its own gate; of several, if these are of one seed of FlyLoRA."""
    request = recipe.request
    if subtract or request.rename is not None or request.grain is not None:
        said = "subtract" if subtract else "rename" if request.rename is not None else "grain"
        raise UsageError(f"{say(said)} is for adapters, and {files[0].given.where} brings its own gate.")
    if request.dtype is not None:
        check_dtype(files[0].bundle().gate, request)
        files = [replace(each, dtype=dtypes.parse(request.dtype)) for each in files]
    bundle = averaged(files) if len(files) > 1 else files[0].bundle()
    bundle = chosen(bundle, request)
    if gate is not None or options:
        made = _gate(gate, options, request)
        if isinstance(made, Static) and made.weights is None:
            made = Static(weights=[files[0].uniform()] * len(bundle.experts))
        bundle = bundle.gated(made)
    if request.out is None:
        return bundle
    check_apart(request.out, [], [original.path for each in files for original in each.originals()])
    rows = [{"name": name} for name in bundle.experts]
    bundle = recorded(bundle, experts=rows, imported=[each.described() for each in files])
    write_bundle(bundle, request.out, request.overwrite, effort=request.effort, tell=request.tell)
    return replace(load_bundle(request.out), notes=bundle.notes)


def chosen(bundle: Bundle, request: Request) -> Bundle:
    """The bundle with the modules that were asked for."""
    kept = dict(bundle.layouts)
    for pattern, wanted in ((request.only, True), (request.exclude, False)):
        if pattern is not None:
            found = searcher(pattern, say("only" if wanted else "exclude"))
            kept = {target: layout for target, layout in kept.items() if found(str(target)) == wanted}
    if not kept:
        raise UsageError(f"No module is left by {say('only')} and {say('exclude')}.")
    return replace(bundle, layouts=kept)


def written(bundle: Bundle, sources: Sources, count: int, request: Request) -> Bundle:
    """The bundle in its folder, with the SHA-256 of all that it was made of."""
    assert request.out is not None
    check_apart(request.out, sources.whole)
    with hashing(sources.whole, request.tell) as digests:
        both = zip(sources.whole, digests(), strict=True)
        rows = [described(each, sha256, scales_digest(each)) for each, sha256 in both]
    more = {"subtracted": rows[count:]} if rows[count:] else {}
    bundle = recorded(bundle, experts=rows[:count], **more)
    write_bundle(bundle, request.out, request.overwrite, sources.confirm, request.effort, request.tell)
    return replace(load_bundle(request.out), notes=bundle.notes)


def check_dtype(gate: Gate, request: Request) -> None:
    """Raises UsageError: the type that is asked for would move length between the halves of a unit."""
    if request.dtype is not None and stored_as(gate, kind := dtypes.parse(request.dtype)) != kind:
        raise UsageError(
            f"{say('dtype', request.dtype)} would change the lengths of units, by which {name_of(gate)} "
            "goes: give bfloat16 or float32."
        )


def _gate(gate: str | Gate | None, options: Mapping[str, Any], request: Request) -> DataFree:
    """The gate that was asked for. Raises UsageError: it comes with a file, or knows no weights."""
    made = make(DEFAULT if gate is None else gate, options)
    if not isinstance(made, DataFree):
        raise UsageError(
            f"The gate {name_of(made)} was trained and comes with a file: name that file as the source. Of "
            f"adapters alone there are {', '.join(free())}."
        )
    if request.weights is None:
        return made
    if not isinstance(made, Static):
        raise UsageError(f"{say('weights')} is for the gate static: {name_of(made)} finds its own.")
    if not all(isinstance(weight, float) for weight in request.weights):
        raise UsageError(f"{say('weights')} of a bundle are numbers: ramps are for merges.")
    return Static(weights=tuple(request.weights))  # type: ignore[arg-type]  # no ramps, as checked


def check_beside(adapters: Sequence[Adapter], extras: str) -> None:
    """Refuse tensors beside the pairs, unless they are to be left out.

    Raises:
        IncompatibleError: an adapter has a head, a bias, or other tensors of its own.
    """
    if extras not in ("refuse", "drop"):
        raise UsageError(
            f"{say('extras', extras)} would mix the heads of experts that are kept apart: drop them."
        )
    for adapter in adapters:
        if adapter.biases or (adapter.extras and extras == "refuse"):
            some = next(iter([*adapter.extras, *map(str, adapter.biases)]))
            raise IncompatibleError(
                f"{printable(adapter.name)} holds tensors that are no low-rank pair ({printable(some)}), and "
                f"a gate weighs low-rank units: leave them out with {say('extras', 'drop')}."
            )


def base_of(adapters: Sequence[Adapter]) -> BaseModel:
    """The model that they share, as far as they say."""
    revisions = {a.base.revision for a in adapters}
    revision = revisions.pop() if len(revisions) == 1 else None
    return BaseModel(without_folders(common_base(adapters)), revision)


def config_of(sources: Sources, experts: Experts) -> dict[str, Any]:
    """What PEFT must know beside ranks. If the experts give suffixes of names, so does this."""
    return portable.config(sources.whole, experts.layouts(), 1)
