"""Heads of classifiers that are trained as pairs: each row is a label, which must be one in all sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, printable, say
from loramerge.formats import vocabulary
from loramerge.formats.models.stems import layered
from loramerge.formats.peft.beside import labels

HEADS = ("score", "classifier", "classification_head")  # what transformers calls the heads of labels


def check_labels(adapters: Sequence[Adapter]) -> list[str]:
    """Sentences about heads whose labels are not known.

    Raises:
        IncompatibleError: the rows of a head are other labels in another source.
    """
    notes = []
    for head in sorted({target for adapter in adapters for target in _heads(adapter)}):
        having = [adapter for adapter in adapters if head in adapter.slots]
        for first, other in combinations([a for a in having if labels(a) is not None], 2):
            _check_one(head, first, other)
        unsaid = printable(", ".join(a.name for a in having if labels(a) is None))
        if unsaid and len(having) > 1:
            notes.append(
                f"the labels of {printable(head)} in {unsaid} are not known, and taken to be the same"
            )
    return notes


def has_labels(path: str) -> bool:
    """Whether a module is called as heads are whose rows are labels.

    >>> has_labels("score"), has_labels("classifier.out_proj"), has_labels("model.layers.0.mlp.up_proj")
    (True, True, False)
    """
    parts = path.split(".")
    return not layered(path) and bool(set(parts) & set(HEADS)) and parts[-1] != "dense"


def _heads(adapter: Adapter) -> Iterator[Target]:
    """Its pairs whose rows are labels: of a head by name, and of as many rows as there are labels."""
    known = labels(adapter)
    for target, slot in adapter.slots.items():
        if target.kind != "linear" or layered(target.path) or vocabulary.named(target.path):
            continue
        if slot.shape[0] == len(known) if known else has_labels(target.path):
            yield target


def _check_one(head: Target, first: Adapter, other: Adapter) -> None:
    ours, theirs = labels(first) or {}, labels(other) or {}
    if ours == theirs:
        return
    row = next(row for row in {**ours, **theirs} if ours.get(row) != theirs.get(row))
    one, two = (printable(each.get(row, "nothing"), 40) for each in (ours, theirs))
    raise IncompatibleError(
        f"Row {printable(row, 40)} of {printable(head)} is {one} in {printable(first.name)} and {two} in "
        f"{printable(other.name)}: their labels differ, so a sum of the two means nothing. Leave it out with "
        f"{say('exclude')}."
    )
