"""An adapter added to its base model: the same files with W + ΔW in the place of W."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.arguments import checked
from loramerge.arrays.workers import workers
from loramerge.charts.facts import as_frame
from loramerge.checkpoints.apply import Fused
from loramerge.checkpoints.base import Known
from loramerge.checkpoints.changes import Changes, changes, scaled
from loramerge.checkpoints.open import open_checkpoint, open_headers
from loramerge.checkpoints.places import home
from loramerge.checkpoints.quantisation import check_readable
from loramerge.checkpoints.write import check_place, write
from loramerge.errors import UsageError, printable, say
from loramerge.formats.files.destination import check_apart
from loramerge.merge.tables import as_html, counted, headed
from loramerge.request.entry import part
from loramerge.request.progress import Stage
from loramerge.request.recipe import Source
from loramerge.request.request import Request
from loramerge.request.signature import spelled
from loramerge.sources.identity import identified
from loramerge.sources.open import open_one
from loramerge.sources.select import check_exclude, select

WIDE = 12  # bytes for an entry while a tensor is changed, at most
FAINT = 0.5  # of ‖ΔW‖ lost to rounding: most of it is gone


@dataclass(frozen=True, eq=False)
class Fusion:
    """What `fuse` returns: the model that was written, and what became of its tensors.

    Args:
        out: the folder, or the file.   tensors: those that were changed.
        said: what the user should read.
    """

    out: Path
    tensors: tuple[Fused, ...]
    said: tuple[str, ...] = ()

    @property
    def rounding(self) -> float:
        """‖W + ΔW − what is stored‖ / ‖ΔW‖ over all tensors that an update was added to."""
        added = sum(each.added for each in self.tensors)
        return (sum(each.rounding for each in self.tensors) / added) ** 0.5 if added else 0.0

    @property
    def notes(self) -> Iterator[str]:
        """Sentences that the user should read."""
        yield from self.said
        faint = [each for each in self.tensors if each.rounding > FAINT**2 * each.added > 0]
        if faint:
            yield (
                f"in {len(faint)} tensors, such as {printable(faint[0].name)}, the update is so small that "
                "rounding to the type of the model changes it by more than half: keep the adapter apart, or "
                "fuse it into a wider copy of the model"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "out": str(self.out),
            "rounding": self.rounding,
            "tensors": self._rows(),
            "notes": list(self.notes),
        }

    def to_frame(self) -> Any:
        """A `pandas.DataFrame` with a row for each changed tensor; pandas must be installed."""
        return as_frame(self._rows())

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {"name": each.name, "norm": each.added**0.5, "rounding": each.rounding**0.5}
            for each in self.tensors
        ]

    def _repr_html_(self) -> str:
        rows = [[each["name"], f"{each['norm']:.4g}", f"{each['rounding']:.2g}"] for each in self._rows()]
        return as_html(headed(["tensor", "‖update‖", "rounding"], rows), [str(self), *self.notes])

    def __repr__(self) -> str:
        return f"<Fusion in {printable(self.out)}: {self}>"

    def __str__(self) -> str:
        many = counted(len(self.tensors), "tensor")
        return f"{many} changed, rounding cost {100 * self.rounding:.2g} % of the update"


@spelled("fuse")
@checked("base", "out", "subtract")
def fuse(
    adapter: Source, base: str | Path, out: str | Path | None = None, *, subtract: bool = False, **asked: Any
) -> Fusion:
    """Write a model with an adapter added to its weights, which then needs no adapter.

    The result has the files, names and types of the base; all that does not change is copied byte by byte,
    with config and tokenizer. Each sum is rounded once. Heads, biases and token rows of the adapter take the
    place of the model's own.

    Args:
        adapter: as for `load`.
        base: a folder as transformers or diffusers writes it, a single file, or a name on the Hub.
        subtract: take the adapter out of a model that it was fused into, up to rounding.
        {asked}

    Raises:
        UsageError, SourceError, IncompatibleError, OutputError: a sentence each.
        VerificationError: a tensor was read back with other values.
    """
    fields, _ = part("fuse", None, asked)
    request = Request(**fields)
    where = Path(out) if out is not None else request.out
    if where is None:
        raise UsageError("fuse writes a model: say where, by out.")
    if isinstance(request.scale, str):
        raise UsageError(f"{say('scale', request.scale)} is for merges of several adapters: give a number.")
    trained_on = Known(open_headers(base), changed=True) if subtract else base
    (found,) = identified([open_one(adapter, request, base=trained_on)], request)
    factor = float(request.scale) * (-1.0 if subtract else 1.0)
    return fused(found, base, where, request, factor)


def fused(adapter: Adapter, base: str | Path, out: Path, request: Request, factor: float = 1.0) -> Fusion:
    """The same for an adapter that is read, at a strength."""
    model = open_checkpoint(base)
    check_readable(model)
    check_place(model, out, request.overwrite)
    check_apart(out, [adapter])
    check_exclude([adapter], request.exclude)
    chosen = scaled(home(model, select([adapter], request.only, request.exclude)[0]), factor)
    todo = changes(model, chosen)
    with (
        Stage(request.tell, "fusing", len(todo.tensors)) as stage,
        workers(_threads(todo, request), stage.tick) as run,
    ):

        def counted(make: Callable[[str], Any], keys: Iterable[str]) -> Iterable[Any]:
            for each in run(make, keys):
                stage.step()
                yield each

        done = write(todo, out, request.overwrite, counted)
    return Fusion(out, tuple(done), (*adapter.oddities, *todo.notes))


def _threads(todo: Changes, request: Request) -> int:
    most = max((prod(change.shape) for change in todo.tensors.values()), default=1)
    return request.effort.holding(most * WIDE).workers
