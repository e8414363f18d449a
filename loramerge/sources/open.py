"""Which sources, with which weights, over which modules: everything settled before numbers are read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.base_models import compare_bases
from loramerge.adapters.late import late
from loramerge.adapters.original import confirm_places
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.checkpoints.tuned import Tuned
from loramerge.errors import IncompatibleError, UsageError, printable, say
from loramerge.formats import Alpha, load
from loramerge.formats.forms.form import Base
from loramerge.formats.peft.alpha import check_alpha
from loramerge.hub.names import hub_name
from loramerge.hub.progress import ended
from loramerge.request.progress import Stage, Tell
from loramerge.request.recipe import Ingredient, Source
from loramerge.request.request import Request
from loramerge.sources.aid import aid
from loramerge.sources.depth import check as check_depth
from loramerge.sources.failures import BROKEN, Broken, of_all

if TYPE_CHECKING:
    from concurrent.futures import Future

EXPERT = late(r"\.\d+\.[^.]+$")  # one expert's own layer, below the module of all experts
Value = TypeVar("Value")
FEW = 4  # sources that are named one by one
CONNECTIONS = 8  # to the Hub at once
Alphas = Alpha | Mapping[str, Alpha] | None
Watch = Callable[[Any], Iterable[Any]]
Load = Callable[..., Adapter]  # of a source; True after it: only the header of one on the Hub


def open_all(
    ingredients: Sequence[Ingredient], request: Request, read: Sequence[Adapter] = ()
) -> list[Adapter]:
    """Load every source, with the alpha meant for it, under names that tell them apart.

    `read`: the same sources, where they are loaded already.

    Raises:
        UsageError: an alpha or an initial adapter for something that is no source.
    """
    sources = [each.source for each in ingredients]
    check_alphas(sources, request.alpha)
    check_named(sources, request.initial or {}, "initial")

    if read:
        pairs = zip(read, ingredients, strict=True)
        return _told_apart([_marked(adapter, each.revision) for adapter, each in pairs], sources)
    base = None
    if request.base is not None:
        from loramerge.checkpoints.base import open_base  # few merges need the base model

        base = open_base(request.base)

    def load(each: Ingredient, peeking: bool = False) -> Adapter:
        found = open_one(each.source, request, peeking, base)
        return _marked(found, each.revision)

    with Stage(_told(ingredients, request), "reading", len(sources)) as stage:
        found = opened(ingredients, load, stage.over)
    for told in {id(each.told): each.told for each in ingredients}.values():
        confirm_places(told)
    return _told_apart(found, sources)


def _told(ingredients: Sequence[Ingredient], request: Request) -> Tell | None:
    """Who hears about the progress of reading; downloads have a bar of their own."""
    return None if any(is_of_hub(each) for each in ingredients) else request.tell


def is_of_hub(each: Ingredient) -> bool:
    """Whether a source has to be fetched."""
    return not isinstance(each.source, Tuned) and hub_name(each.source) is not None


def _marked(adapter: Adapter, revision: str | None) -> Adapter:
    """With the revision that the recipe names."""
    came = adapter.provenance
    if came.hub or revision is None:  # what was fetched at a revision is known by its commit
        return adapter
    return replace(adapter, provenance=replace(came, revision=revision))


def opened(sources: Sequence[Ingredient], load: Load, watch: Watch = iter) -> list[Adapter]:
    """Every source loaded, in order; several of the Hub at once, since each waits for its answers."""
    waiting = sum(map(is_of_hub, sources))
    if waiting < 2:
        return _all_of(sources, load, watch)
    from concurrent.futures import ThreadPoolExecutor  # it loads logging, and most sources lie on the disk

    with ThreadPoolExecutor(min(waiting, CONNECTIONS)) as pool:
        jobs = [pool.submit(load, source) for source in sources]
        try:
            return [job.result() for _, job in zip(watch(sources), jobs, strict=True)]
        except BaseException as error:  # nobody need wait for gigabytes
            with ended():
                pool.shutdown(cancel_futures=True)
            if not isinstance(error, BROKEN):
                raise
    raise of_all(_rest_broken(sources, jobs, load), len(sources))


def _rest_broken(sources: Sequence[Ingredient], jobs: Sequence[Future[Adapter]], load: Load) -> list[Broken]:
    """Why sources cannot be read, in order; of those that were not fetched to the end, by their headers."""

    from concurrent.futures import ThreadPoolExecutor

    def look(pair: tuple[Ingredient, Future[Adapter]]) -> Broken | None:
        source, job = pair
        error = None if job.cancelled() else job.exception()
        if error is None and not job.cancelled():
            return None
        if isinstance(error, BROKEN):
            return error
        try:
            load(source, True)
        except BROKEN as found:
            return found
        except UsageError:  # of another kind: it is told once the rest is right
            pass
        return None

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        found = pool.map(look, zip(sources, jobs, strict=True))
        return [error for error in found if error is not None]


def _all_of(sources: Sequence[Ingredient], load: Load, watch: Watch) -> list[Adapter]:
    """Every source loaded. Raises what the first one raised, with all others that cannot be read either."""
    found: list[Adapter] = []
    broken: list[Broken] = []
    for source in watch(sources):
        try:
            found.append(load(source))
        except BROKEN as error:
            broken.append(error)
    if broken:
        raise of_all(broken, len(sources))
    return found


def open_one(
    source: Source, request: Request, peeking: bool = False, base: str | Path | Base | None = None
) -> Adapter:
    """Load a source with the alpha meant for it; one meant for all may go unused.

    Args:
        peeking: of the Hub read the header only.
        base: the model that it was trained on, if it is not that of the request.

    Raises:
        SourceError, IncompatibleError, UsageError: as `load`.
    """
    if isinstance(source, Tuned):
        from loramerge.checkpoints.adapter import extracted  # few merges have a model among their sources

        return extracted(source, request.effort.workers, request.extras != "drop")
    alpha: Any = request.alpha
    base = request.base if base is None else base
    return load(
        source,
        _meant_for(source, alpha) if isinstance(alpha, Mapping) else alpha,
        optional=not isinstance(alpha, Mapping),
        allow_pickle=request.allow_pickle,
        initial=_meant_for(source, request.initial or {}),
        peeking=peeking,
        aid=aid(base, request.prompt_gate, request.names, request.keep_form),
    )


def _meant_for(source: Source, given: Mapping[str, Value]) -> Value | None:
    """What is given for a source, by its path or the last part of it."""
    return next((given[name] for name in _names(source) if name in given), None)


def check_alphas(sources: Sequence[Source], alpha: Any) -> None:
    """Every alpha must be possible, and one given by name must name a source: its path, or the last part.

    Raises:
        UsageError: one does not.
    """
    if not isinstance(alpha, Mapping):
        return check_alpha(alpha)
    check_named(sources, alpha, "alpha")
    for value in alpha.values():
        check_alpha(value)
    return None


def check_named(sources: Sequence[Source], given: Mapping[str, object], option: str) -> None:
    known = {name for source in sources for name in _names(source)}
    for name in given:
        if name not in known:
            raise UsageError(f"{say(option)} names {printable(name)}, which is not one of the sources.")


def _names(source: Source) -> tuple[str, ...]:
    if isinstance(source, Adapter):
        return ()
    if isinstance(source, Tuned):
        return (str(source.tuned), str(source))
    found = hub_name(source)
    there = () if found is None else (found.place, found.repo, Path(found.place).name)
    return (str(source), Path(source).name, *there)


def _told_apart(adapters: list[Adapter], sources: Sequence[Source]) -> list[Adapter]:
    """Each by its last part where no other has the same, else with the folder, else numbered."""
    paths = [
        Path(a.name if isinstance(s, Adapter | Tuned) or a.provenance.hub else s)
        for a, s in zip(adapters, sources, strict=True)
    ]
    return [
        replace(a, name=name, provenance=replace(a.provenance, name=name))
        for a, name in zip(adapters, apart(paths), strict=True)
    ]


def apart(paths: Sequence[Path]) -> list[str]:
    """Short names that tell paths apart.

    >>> apart([Path("x/a"), Path("x/b"), Path("y/b"), Path("x/b")])
    ['a', 'x/b#2', 'y/b', 'x/b#4']
    """
    short = [path.name or "." for path in paths]
    longer = [f"{path.parent.name}/{path.name}".lstrip("/") for path in paths]
    times = Counter(short)
    names = [s if times[s] == 1 else more for s, more in zip(short, longer, strict=True)]
    times = Counter(names)
    return [name if times[name] == 1 else f"{name}#{i}" for i, name in enumerate(names, 1)]


def check_together(adapters: Sequence[Adapter], allow_base_mismatch: bool, cut: bool = False) -> list[str]:
    """Refuse adapters that do not belong together; sentences about what is only odd.

    Args:
        cut: blocks of them were left out before.

    Raises:
        IncompatibleError: two kinds of one module, two numberings of layers, or two base models.
    """
    _check_kinds(adapters)
    _check_experts(adapters)
    _check_replication(adapters)
    check_depth(adapters, allow_base_mismatch)
    doubts = compare_bases(adapters, allow_base_mismatch, cut)
    return [*(f"{printable(a.name)}: {oddity}" for a in adapters for oddity in a.oddities), *doubts]


def matched(adapters: list[Adapter]) -> list[Adapter]:
    """A 1×1 convolution is stored as a matrix by some tools: then it is a convolution in all sources."""
    pointwise = {t: t.layout for a in adapters for t in a if t.kind == "conv" and set(t.layout.kernel) == {1}}

    def seen(target: Target) -> Target:
        known = pointwise.get(target) if target.kind == "linear" else None
        return target if known is None else replace(target, kind="conv", layout=known)

    if not pointwise:
        return adapters
    return [replace(a, slots={seen(t): slot for t, slot in a.slots.items()}) for a in adapters]


def _check_kinds(adapters: Sequence[Adapter]) -> None:
    known: dict[Target, tuple[Adapter, Target]] = {}
    for adapter in adapters:
        for target in adapter:
            other, first = known.setdefault(replace(target, index=-1), (adapter, target))
            if _kind(first) != _kind(target):
                raise IncompatibleError(
                    f"{printable(target)} is {_kind(first)} in {printable(other.name)} but {_kind(target)} "
                    f"in {printable(adapter.name)}: they were trained on different base models and cannot be "
                    "merged."
                )


def _check_experts(adapters: Sequence[Adapter]) -> None:
    """transformers 5 fuses the experts that its older versions keep as modules: both are one parameter."""
    fused = {target.path for adapter in adapters for target in adapter if target.kind == "expert"}
    for adapter in adapters if fused else ():
        for target in adapter:
            apart = target.kind != "expert"
            found = fused & {target.path, EXPERT.sub("", target.path)} if apart else set()
            if found:
                raise IncompatibleError(
                    f"A source has parameters of {printable(found.pop())} fused, and "
                    f"{printable(adapter.name)} has {printable(target)} one by one: load the latter in the "
                    "newer transformers, and save it again."
                )


def _kind(target: Target) -> str:
    layout = target.layout
    kernel = f" of kernel {'×'.join(map(str, layout.kernel))}" if layout.kernel else ""
    return f"{target.kind}{kernel}{f' in {layout.blocks} blocks' if layout.blocks > 1 else ''}"


def _check_replication(adapters: Sequence[Adapter]) -> None:
    """Replication renumbers the layers: one name then means another layer of the base."""
    first = adapters[0]
    for other in adapters[1:]:
        if (first.config.get("layer_replication") or None) != (other.config.get("layer_replication") or None):
            raise IncompatibleError(
                f"{printable(first.name)} and {printable(other.name)} set layer_replication differently, so "
                "that their layers are not the same ones: train both on one base."
            )


def renormalised(adapters: Sequence[Adapter], weights: Callable[[Target], Array]) -> list[Adapter]:
    """The adapters with every module that some source lacks scaled up by Σ w / Σ w of those that have it.

    Args:
        weights: (T,) of a module.

    Raises:
        UsageError: the weights of those that have a module add up to zero.
    """
    factors = {}
    for target in {target for adapter in adapters for target in adapter}:
        own = weights(target)
        have = math.fsum(w for a, w in zip(adapters, own, strict=True) if target in a.slots)
        if have == 0:
            raise UsageError(
                f"{say('renormalise', True)} divides by the weights of the sources that have "
                f"{printable(target)}, and "
                "these add up to 0."
            )
        factors[target] = math.fsum(own) / have
    by_path = {target.path: factor for target, factor in factors.items()}
    return [
        replace(
            a,
            slots={t: replace(s, scale=s.scale * factors[t]) for t, s in a.slots.items()},
            biases={t: replace(b, scale=b.scale * by_path.get(t.path, 1.0)) for t, b in a.biases.items()},
        )
        for a in adapters
    ]


def missing_modules(adapters: Sequence[Adapter], renormalise: bool = False) -> list[str]:
    """Sentences about the modules that some source lacks."""
    union = len({target for adapter in adapters for target in adapter})
    lacking = [a for a in adapters if len(a) < union]
    if len(lacking) <= FEW:
        how = "the others count for it there" if renormalise else "it counts as zero in the others"
        return [f"{printable(a.name)} has {len(a)} of the {union} modules; {how}" for a in lacking]
    least, most = (found(union - len(a) for a in lacking) for found in (min, max))
    count = f"{least}" if least == most else f"{least} to {most}"
    how = "the others count for them there" if renormalise else "they count as zero there"
    whose = f"{len(lacking)} of the" if len(lacking) < len(adapters) else "all"
    return [f"{whose} {len(adapters)} sources lack {count} of the {union} modules; {how}"]
