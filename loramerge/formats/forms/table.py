"""The table of forms, and the one way from the tensors of a module to its update.

A new form is one file beside this one, and one line here; `python docs/generate.py` adds it to the catalogue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from math import prod

from loramerge.adapters.limits import check_units
from loramerge.adapters.table import Table
from loramerge.errors import IncompatibleError, SourceError, printable, say
from loramerge.formats.files.views import widened
from loramerge.formats.forms.catalogue import FORMS as FORMS  # the table that others read
from loramerge.formats.forms.checks import check_float, check_full, check_whole, missing
from loramerge.formats.forms.form import Form, Given, Naming, Parts, Update, numberless

ROWS: Table[Form] = Table(  # the catalogue is written from these, and loads none of them before it is used
    "loramerge.formats.forms",
    {
        "lora": "lora.LORA",
        "merged": "merged_linear.MERGED",
        "embedding": "embedding.EMBEDDING",
        "adalora": "adalora.ADALORA",
        "locon": "locon.LOCON",
        "stacked": "stack.STACKED",
        "loha": "loha.LOHA",
        "lokr": "lokr.LOKR",
        "peft_lokr": "lokr.PEFT_LOKR",
        "full": "full.FULL",
        "vera": "vera.VERA",
        "pvera": "pvera.PVERA",
        "boft": "boft.BOFT",
        "dora": "dora.DORA",
        "dora_embedding": "dora.DORA_EMBEDDING",
        "hira": "hira.HIRA",
        "hra": "hra.HRA",
        "ia3": "ia3.IA3",
        "lofit": "lofit.LOFIT",
        "kasa": "kasa.KASA",
        "authors_kasa": "kasa.AUTHORS_KASA",
        "oft": "oft.OFT",
        "psoft": "psoft.PSOFT",
        "c3a": "c3a.C3A",
        "delora": "delora.DELORA",
        "fourierft": "fourierft.FOURIERFT",
        "gralora": "gralora.GRALORA",
        "miss": "miss.MISS",
        "miss_bat": "miss.MISS_BAT",
        "randlora": "randlora.RANDLORA",
        "shira": "shira.SHIRA",
        "tinylora": "tinylora.TINYLORA",
        "triadapt": "triadapt.TRIADAPT",
        "unilora": "unilora.UNILORA",
        "vblora": "vblora.VBLORA",
        "waveft": "waveft.WAVEFT",
        "xs": "xs.XS",
    },
)
Counts = Mapping[tuple[str, bool], int]  # (name of a form, whether it is at full rank) -> modules
TYPES: Mapping[str, str] = {type_: alpha for form in FORMS.values() for type_, alpha in form.types.items()}
ALPHA = "alpha"  # a number beside the factors of any form
NEEDS = {"sizes": "the layer sizes of the base model", "base": "the weights of the base model"}
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
    _check_base(form, given)
    for part in form.must:
        if part not in factors:
            raise missing(form.call(part), given.where)
    for part, tensor in factors.items():
        check = check_whole if part in form.whole else check_float
        check(tensor, f"{form.call(part)} of {given.where}")
        if not form.empty:
            check_full(given.where, tensor)
    made = form.make({part: widened(tensor) for part, tensor in factors.items()}, given)
    if made is None:
        return None
    _check_size(made, factors, given, form)
    return replace(made, form=form.name, full=made.full or form.full)


def counted(counts: Counts) -> list[str]:
    """Notes about the forms of an adapter, from the number of modules that each form has."""
    low, full = dict[str, int](), dict[str, int]()
    for (name, at_full), many in sorted(counts.items(), key=lambda item: list(FORMS).index(item[0][0])):
        if (form := FORMS[name]).told and many:
            kind = full if at_full else low
            kind[form.words] = kind.get(form.words, 0) + many
    each, whole = (" and ".join(f"{n} {words}" for words, n in found.items()) for found in (low, full))
    exact = [f"its {each} modules are read as low-rank updates, exactly"] if each else []
    told = [f"its {whole} modules are read exactly, but at full rank"] if whole else []
    names = {name for (name, _), many in counts.items() if many}
    return [*exact, *told, *(form.caveat for form in FORMS.values() if form.caveat and form.name in names)]


def count(changes: Iterable[Update]) -> Counts:
    """The counts of these updates."""
    return Counter((change.form, change.full) for change in changes)


def whole(counts: Counts) -> tuple[str, ...]:
    """Those of these forms whose updates have full rank, by their words."""
    return tuple(dict.fromkeys(FORMS[name].words for (name, full), n in counts.items() if full and n))


def _form(factors: Parts, given: Given, naming: Naming) -> Form:
    """The form that owns all of these; the one that its setting asks for, if there are several."""
    if not factors:
        raise SourceError(f"{given.where} has an alpha, but no factors.")
    owners = _owners(frozenset(map(numberless, factors)), naming)
    unset = next((form for form in owners if form.setting), None)
    found = [form for form in owners if form.fits(given.config)]
    if not found and unset:
        raise IncompatibleError(
            f"{given.where} is stored as {unset.words}, which only an adapter_config.json with "
            f"{unset.setting} explains: load the folder that has it."
        )
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
            f"which only an adapter_config.json of type {types} explains: load the folder that has it."
            if kind is None
            else f"but its config is of type {printable(kind)}, not {types}: they do not belong together."
        )
    )


def _check_base(form: Form, given: Given) -> None:
    """A form that needs the base model has it.

    Raises:
        IncompatibleError: there is none, or it has no such layer.
    """
    if form.needs == "file":
        return
    if given.path in given.layers:
        if given.layer.kernel and not form.conv:
            raise IncompatibleError(
                f"{given.where} is {form.words} of a convolution, which is not read: merge it into its base "
                "with the library that wrote it, and take the difference of the two with loramerge extract."
            )
        return
    if given.base is not None:
        raise IncompatibleError(
            f"{printable(given.base, 1000)} has no linear layer for {given.where}: it was trained on another "
            "model."
        )
    raise IncompatibleError(
        f"{given.where} is stored as {form.words}, which needs {NEEDS[form.needs]} to become an update: name "
        f"that model by {say('base', 'BASE')}, a path or a name on the Hub."
    )


def _check_size(made: Update, factors: Parts, given: Given, form: Form) -> None:
    """A product of small factors may be of any size: no small file may ask for gigabytes.

    Raises:
        IncompatibleError: it does; or the base model has another size.
    """
    where, outs, ins, units = given.where, made.up.shape[0], made.down.shape[1], made.down.shape[0]
    stored = sum(prod(tensor.shape) for tensor in factors.values())
    if form.needs != "file":
        size = given.layer.size[::-1] if made.kind == "embedding" else given.layer.size
        if (outs, ins) != size:
            raise IncompatibleError(
                f"{where} is an update of {outs}×{ins}, but its layer in {printable(given.base, 1000)} is "
                f"{size[0]}×{size[1]}: it was trained on another model."
            )
        stored = max(stored, outs * ins)
    if max(outs, ins) * units <= max(MOST_ENTRIES, stored):
        return
    check_units(where, (outs, ins), [units])
    raise IncompatibleError(
        f"The factors of {where} mean an update of {outs}×{ins}, with {units} units: no model has such "
        "layers, or it must be read by the library that wrote it."
    )
