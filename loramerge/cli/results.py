"""What commands print of a merge: in words, as JSON, or its path alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from loramerge.algorithms import name_of, options_of
from loramerge.arrays import dtypes
from loramerge.cli import show
from loramerge.errors import printable
from loramerge.formats import output
from loramerge.merge.plan import Plan
from loramerge.merge.run import Merge
from loramerge.merge.tables import counted, fitted, wrapped

if TYPE_CHECKING:
    from loramerge.hub.commits import Pushed
    from loramerge.merge.curve import Point
    from loramerge.merge.report import Report
    from loramerge.verbs.extraction import Extraction
    from loramerge.verbs.fuse import Fusion

Printed = Literal["words", "json", "path"]
# Of a module, once it is merged; null where nothing is to be said.
MEASURED = ("norm", "energy_lost", "rounding_error", "cosines", "cut_by_rank", "scale")


def check_printed(given: Mapping[str, Any]) -> Printed:
    """What --json and --quiet ask for. Raises UsageError: both."""
    if given["quiet"] and given["as_json"]:
        raise click.UsageError("--json and --quiet both decide what is printed: give one of them.")
    return "json" if given["as_json"] else "path" if given["quiet"] else "words"


def show_pushed(done: Pushed, printed: Printed) -> None:
    for note in done.notes:
        show.note(f"note: {note}")
    if printed != "path":
        show.note(f"pushed {printable(done.url)}")


def show_deltas(plan: Plan, out: Path, printed: Printed) -> None:
    """Write dense deltas, and what they kept and lost."""
    from loramerge.verbs.deltas import write_deltas

    asked = plan.request
    made = write_deltas(plan, out, overwrite=asked.overwrite, effort=asked.effort, progress=asked.tell)
    if printed == "json":
        return show.data({"out": str(out), **_told(made)})
    if printed == "path":
        return click.echo(str(out))
    for note in made.notes:
        show.note(f"note: {note}")
    click.echo(str(made))
    show.note(f"wrote {printable(out)}: {plan.named}, {len(made.modules)} dense deltas")
    return None


def show_plan(plan: Plan, out: Path, printed: Printed) -> None:
    """What would be written, and what other sizes would lose."""
    if printed == "path":
        return click.echo(str(out))
    from loramerge.merge.curve import curve  # for --dry-run alone

    points = [] if plan.request.keep_form else curve(plan, output.is_bare(out))
    if printed == "json":
        return show.data(_foreseen(plan, out, points))
    for note in (*plan.notes, *plan.above_memory):
        show.note(f"note: {note}")
    pairs = zip(plan.sources.adapters, plan.weights, strict=True)
    lines = [f"{weight:g} × {printable(adapter.name)}" for adapter, weight in pairs]
    click.echo("\n".join(wrapped([*lines, f"would write {what(plan, out)}"])))
    _show_curve(points)
    return None


def _foreseen(plan: Plan, out: Path, points: list[Point]) -> dict[str, Any]:
    """What is known of a merge before it is made: the same keys, null where nothing is known yet."""
    names, weights = [adapter.name for adapter in plan.sources.adapters], plan.weights.tolist()
    return {
        **_output(plan, out),
        "dry_run": True,
        "sha256": None,
        **dict.fromkeys(("energy_lost", "cut_by_rank", "rounding_error", "strength")),
        "sources": [
            {"name": name, "weight": weight, "cosine": None, "norm_ratio": None}
            for name, weight in zip(names, weights, strict=True)
        ],
        "pairwise_cosines": [],
        "modules": [
            {"name": str(target), "ranks": list(ranks), **dict.fromkeys(MEASURED)}
            for target, ranks in sorted(plan.sources.signatures.items())
        ],
        "notes": [*plan.notes, *plan.above_memory],
        "curve": [point.to_dict() for point in points],
    }


def _output(plan: Plan, out: Path) -> dict[str, Any]:
    """What is, or would be, written."""
    return {
        "out": str(out),
        "method": {
            "name": name_of(plan.method),
            "options": options_of(plan.method),
            "default": plan.default is not None,
        },
        "rank": plan.outline.largest,
        "ranks": dict(plan.outline.ranks),
        "dtype": dtypes.word(plan.outline.dtype),
        "format": plan.sources.dialect.name,
        "bytes": plan.outline.nbytes,
        "weights": plan.weights.tolist(),
    }


def _show_curve(points: list[Point]) -> None:
    if not points:
        return
    rows = [
        [f"{p.total_rank:>10}", str(p.rank), show.size(p.bytes), f"{100 * p.energy_lost:.3g} %"]
        for p in points
    ]
    click.echo("\n".join(fitted([["total rank", "largest", "size", "energy lost at best"], *rows])))


def show_merge(merge: Merge, plan: Plan, out: Path, printed: Printed, done: Pushed | None = None) -> None:
    """What was kept and lost, and where it lies."""
    if printed == "json":
        sent = {"pushed": done.url} if done else {}
        return show.data({**facts_of(merge, plan, out), **sent})
    if printed == "path":
        return click.echo(str(out))
    for note in (*merge.report.notes, *plan.above_memory):
        show.note(f"note: {note}")
    click.echo(str(merge.report))
    show.note(f"wrote {what(plan, out)}")
    return None


def facts_of(merge: Merge, plan: Plan, out: Path) -> dict[str, Any]:
    """All that is known of a merge that was written."""
    marks = merge.adapter.provenance.sha256()
    said = _told(merge.report)
    said["modules"] = [{**dict.fromkeys(MEASURED), **module} for module in said["modules"]]
    return {**_output(plan, out), "dry_run": False, "sha256": marks, **said, "curve": []}


def _told(report: Report) -> dict[str, Any]:
    """Its plain values, and among the notes that the merge is too strong; a record has the number alone."""
    return {**report.to_dict(), "notes": notes_of(report)}


def notes_of(report: Report) -> list[str]:
    """All that is to be said of a merge, where its table is not shown."""
    return [*report.to_dict()["notes"], *filter(None, [report.too_strong])]


def what(plan: Plan, out: Path) -> str:
    outline = plan.outline
    return (
        f"{printable(out)}: {plan.named}, {counted(len(plan.sources.signatures), 'module')}, "
        f"{_form(plan)}, {dtypes.word(outline.dtype)}, {show.size(outline.nbytes)}"
    )


def _form(plan: Plan) -> str:
    """What it is written as, where that is the form of its sources; else its ranks."""
    if not plan.request.keep_form:
        return _ranks(plan)
    kind = plan.outline.config.get("peft_type", plan.sources.dialect.tool)
    return f"as {printable(kind)} like its sources"


def _ranks(plan: Plan) -> str:
    outline = plan.outline
    if not outline.ranks:
        return f"rank {outline.rank}"
    least = min(outline.rank, *outline.ranks.values())
    return f"ranks {least} to {outline.largest}"


def show_done(done: Extraction | Fusion, printed: Printed) -> None:
    """What was made of or with a model, and where it lies."""
    if printed == "json":
        return show.data(done.to_dict())
    if printed == "path":
        return click.echo(str(done.out))
    for note in done.notes:
        show.note(f"note: {note}")
    click.echo(str(done))
    return show.note(f"wrote {printable(done.out)}")
