"""The table of forms, and the one way from the tensors of a module to its update.

A new form is one file beside this one, and one line here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from math import prod

from loramerge.adapters.limits import check_units
from loramerge.errors import IncompatibleError, SourceError, printable
from loramerge.formats.files.views import widened
from loramerge.formats.forms.adalora import ADALORA
from loramerge.formats.forms.checks import check_float, check_full, missing
from loramerge.formats.forms.embedding import EMBEDDING
from loramerge.formats.forms.form import Form, Given, Naming, Parts, Update, numberless
from loramerge.formats.forms.full import FULL
from loramerge.formats.forms.locon import LOCON
from loramerge.formats.forms.loha import LOHA
from loramerge.formats.forms.lokr import LOKR, PEFT_LOKR
from loramerge.formats.forms.lora import LORA
from loramerge.formats.forms.merged import MERGED
from loramerge.formats.forms.stacked import STACKED

FORMS: Mapping[str, Form] = {
    form.name: form
    for form in (
        LORA,
        MERGED,
        EMBEDDING,
        ADALORA,
        LOCON,
        STACKED,
        LOHA,
        LOKR,
        PEFT_LOKR,
        FULL,
    )
}
TYPES: Mapping[str, str] = {type_: alpha for form in FORMS.values() for type_, alpha in form.types.items()}
ALPHA = "alpha"  # a number beside the factors of any form
MOST_ENTRIES = 2**28  # of a factor that is computed: 2 GiB while it is


def update(parts: Parts, given: Given, naming: Naming) -> Update | None:
    """The update that these parts are; None where nothing was left of it. No number is read.

    Raises:
        SourceError: a part is missing, or the shapes do not fit.
        IncompatibleError: a part of a type that is not read, or a form that its config does not know.
    """
    factors = {part: tensor for part, tensor in parts.items() if part != ALPHA}
    form = _form(factors, given, naming)
    _check_type(form, given, naming)
    for part in form.must:
        if part not in factors:
            raise missing(form.call(part), given.where)
    for part, tensor in factors.items():
        check_float(tensor, f"{form.call(part)} of {given.where}")
        if not form.empty:
            check_full(given.where, tensor)
    made = form.make({part: widened(tensor) for part, tensor in factors.items()}, given)
    if made is None:
        return None
    _check_size(made, factors, given.where)
    return replace(made, form=form.name)


def counted(counts: Mapping[str, int]) -> list[str]:
    """What notes say of the forms of an adapter: name of a form -> how many modules have it."""
    told: dict[str, int] = {}
    for name, form in FORMS.items():
        if form.told and counts.get(name):
            told[form.words] = told.get(form.words, 0) + counts[name]
    each = " and ".join(f"{count} {words}" for words, count in told.items())
    return [f"its {each} modules are read as low-rank updates, exactly"] if each else []


def _form(factors: Parts, given: Given, naming: Naming) -> Form:
    """The form that owns all of these; the one that its setting asks for, if there are several."""
    if not factors:
        raise SourceError(f"{given.where} has an alpha, but no factors.")
    owners = _owners(frozenset(map(numberless, factors)), naming)
    found = [form for form in owners if not form.setting or given.config.get(form.setting)]
    if not found:
        words = " and ".join(_words(factors, naming))
        raise SourceError(f"{given.where} has {words} in one: it was badly saved.")
    return next((form for form in found if form.setting), found[0])


@lru_cache(256)  # the modules of an adapter are alike
def _owners(parts: frozenset[str], naming: Naming) -> list[Form]:
    """The forms to which all of these can belong."""
    return [form for form in FORMS.values() if all(form.owns(part, naming) for part in parts)]


def _words(factors: Iterable[str], naming: Naming) -> list[str]:
    """The forms to which some of these belong."""
    first = {part: next(f.words for f in FORMS.values() if f.owns(part, naming)) for part in factors}
    return sorted(set(first.values()))


def _check_type(form: Form, given: Given, naming: Naming) -> None:
    """A config of PEFT says what it is the config of."""
    kind = given.config.get("peft_type")
    if naming != "peft" or kind in tuple(form.types) or (kind is None and form.bare):
        return
    types = " or ".join(form.types)
    raise IncompatibleError(
        f"{given.where} is stored as {form.words}, "
        + (
            f"whose scale only an adapter_config.json of type {types} tells: load the folder that has it."
            if kind is None
            else f"but its config is of type {printable(kind)}, not {types}: they do not belong together."
        )
    )


def _check_size(made: Update, factors: Parts, where: str) -> None:
    """A product of small factors may be of any size: no small file may ask for gigabytes.

    Raises:
        IncompatibleError: it does.
    """
    outs, ins, units = made.up.shape[0], made.down.shape[1], made.down.shape[0]
    stored = sum(prod(tensor.shape) for tensor in factors.values())
    if max(outs, ins) * units <= max(MOST_ENTRIES, stored):
        return
    check_units(where, (outs, ins), [units])
    raise IncompatibleError(
        f"The factors of {where} mean an update of {outs}×{ins}, with {units} units: no model has such "
        "layers, or it must be read by the library that wrote it."
    )
