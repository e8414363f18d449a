"""Methods side by side at one rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from loramerge.algorithms import METHODS, find
from loramerge.algorithms.families.size import Ranked
from loramerge.charts.methods import NUMBERED
from loramerge.charts.methods import methods as chart
from loramerge.charts.table import Table, numbers, texts
from loramerge.errors import ChangedError, LoramergeError, say
from loramerge.merge.report import Report
from loramerge.pages.commands import combined
from loramerge.pages.section import Section
from loramerge.pages.subject import Subject, several
from loramerge.request.kinds import size

WORDS = (
    "The same sources, merged by each method at one rank. To the right a method keeps more of a source. "
    "Strength is ‖merge‖ over the mean ‖ΔW‖ of the sources, and much above 1 often does more harm than good; "
    "energy lost counts against the weighted sum, which some methods do not aim at."
)
FAMILIES = ("linear", "clustering", "coefficients", "spectral")  # which need the Grams only
OTHERS = "Other methods, such as ties, take longer: name those that you want, with --method or methods=[...]."
MANY = ("svd", "lego")  # where Grams are not kept


def methods(subject: Subject) -> Section:
    """A row for each method."""
    found = {name: _above_memory(subject, name) for name in compared(subject)}
    names = subject.methods or tuple(name for name, above in found.items() if not above)
    rank = subject.common
    how = combined(subject, (*names, *MANY)[0], {"rank": rank}, "-o merged")
    title = f"Methods side by side at rank {rank}"
    if why := [*several(subject), *filter(None, [subject.crowd])]:
        return Section("methods", "Methods side by side", WORDS, how, notes=why)
    rows, notes = [], [] if subject.methods else [OTHERS, *_large(found)]
    for name in names:
        try:
            rows.append(_row(name, subject.tried(name)))
        except ChangedError:
            raise
        except LoramergeError as error:
            notes.append(f"{name}: {error}")
    if not rows:
        return Section("methods", title, WORDS, how, notes=notes)
    cosines = [f"{NUMBERED}{i})" for i in range(1, len(subject.named) + 1)]
    columns = (*texts("method"), *numbers("strength", "energy lost", *cosines), *texts("most lost in"))
    return Section("methods", title, WORDS, how, Table(columns, rows), chart, "method", notes)


def compared(subject: Subject) -> Iterator[str]:
    """The methods that are compared if nobody says which: those that need no dense ΔW and no other facts."""
    if subject.session is None:
        yield from MANY
        return
    for name, method in METHODS.items():
        traits = method().traits
        fits = traits.family in FAMILIES and traits.given == "weight" and traits.units == "any"
        few = traits.most is None or len(subject.named) <= traits.most
        if issubclass(method, Ranked) and fits and few and name not in ("linear", "average"):
            yield name


def _above_memory(subject: Subject, name: str) -> int:
    """Bytes that a method takes for the largest module, if that is more than there may be; else 0."""
    if isinstance(subject.together, str):
        return 0
    held = subject.together.held(find(name)(**subject.options(name)))
    return held if held > subject.recipe.request.effort.memory else 0


def _large(found: Mapping[str, int]) -> list[str]:
    names = [name for name, above in found.items() if above]
    if not names:
        return []
    many = "is" if len(names) == 1 else "are"
    return [
        f"{', '.join(names)} would take up to {size(max(found.values()))} for a module, more than "
        f"{say('memory').rstrip('=')} allows, and {many} left out: name those that you want, as above."
    ]


def _row(name: str, report: Report) -> tuple[object, ...]:
    worst = report.worst(3) if report.energy_lost else []
    return name, report.strength, report.energy_lost, *report.cosines, ", ".join(m.name for m in worst)
