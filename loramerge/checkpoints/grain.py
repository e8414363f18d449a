"""Modules that a model has as one and an adapter in parts, or the other way round; the model tells sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from loramerge.formats.models.projections import PROJECTIONS, Projection

# (module of the model, rows of the update, of the tensor)
Piece = tuple[str, slice | None, tuple[slice, ...]]


def pieces(path: str, outs: int, heights: Mapping[str, int], adapted: Mapping[str, int]) -> list[Piece]:
    """Where the rows of a module go that the model does not have under this name; empty if that is not known.

    Args:
        path, outs: of the module, as the model would name it.   heights: of the model's modules.
        adapted: of the adapter's modules.

    >>> pieces("a.qkv_proj", 8, {"a.q_proj": 4, "a.k_proj": 2, "a.v_proj": 2}, {})[1:]
    [('a.k_proj', slice(4, 6, None), ()), ('a.v_proj', slice(6, 8, None), ())]
    >>> pieces("a.k_proj", 2, {"a.qkv_proj": 8}, {"a.k_proj": 2})
    [('a.qkv_proj', None, (slice(4, 6, None),))]
    """
    parent, _, last = path.rpartition(".")
    for projection in PROJECTIONS:
        names = [f"{parent}.{part}" for part in projection.parts]
        whole = f"{parent}.{projection.whole}"
        if projection.rows in ("unknown", "turns"):
            continue
        if last == projection.whole and all(name in heights for name in names):
            spans = _spans(projection, outs, {n: heights[n] for n in names})
            return [(name, span, ()) for name, span in zip(names, spans, strict=bool(spans))]
        if last in projection.parts and whole in heights:
            known = {name: adapted[name] for name in names if name in adapted}
            spans = _spans(projection, heights[whole], known)
            return [(whole, None, (spans[projection.parts.index(last)],))] if spans else []
    return []


def _spans(projection: Projection, outs: int, known: Mapping[str, int]) -> list[slice]:
    """The rows of each part of a whole; none if they do not add up."""
    sizes = projection.sizes(outs, {path.rpartition(".")[2]: rows for path, rows in known.items()})
    return [span for (span,) in projection.spans(sizes)] if sizes else []


def others(path: str) -> Iterator[str]:
    """What a module may be called in a model of another grain."""
    parent, _, last = path.rpartition(".")
    for projection in PROJECTIONS:
        if last == projection.whole:
            yield from (f"{parent}.{part}" for part in projection.parts)
        elif last in projection.parts:
            yield f"{parent}.{projection.whole}"
