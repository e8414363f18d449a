"""From the parts of PEFT's modules to pairs: by the table of forms, and by what the config says of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from math import prod
from typing import Any

from loramerge.adapters.late import late
from loramerge.adapters.target import Layout, Target
from loramerge.errors import printable
from loramerge.formats import models
from loramerge.formats.files.views import widened
from loramerge.formats.forms.beside import refuse_around, refuse_inside
from loramerge.formats.forms.form import Given, Update
from loramerge.formats.forms.table import FORMS, count, counted, update
from loramerge.formats.forms.table import whole as whole_forms
from loramerge.formats.models import unet
from loramerge.formats.peft.beside import Listed
from loramerge.formats.peft.config import Scaling
from loramerge.formats.peft.experts import stacked, unfold
from loramerge.formats.peft.names import PREFIX, WRAPPED
from loramerge.formats.peft.pairs import Pair, Pairs, Stored

CONV = late(r"(?:^|\.)\w*conv\w*$", re.IGNORECASE)


def understood(stored: Stored, config: Mapping[str, Any], rule: Scaling | None, name: str) -> Pairs:
    """The updates that a config makes of what is stored, still without their scales.

    Raises:
        SourceError, IncompatibleError: they do not fit it, or need one.
    """
    _check_extras(stored, config, name)
    changes: dict[str, Update] = {}
    whole: dict[str, Pair] = {}
    known = stored.base.layers(stored.modules.keys()) if stored.base else {}
    base = stored.base.name if stored.base else None
    for path, parts in sorted(stored.modules.items()):
        where = f"{printable(path)} in {printable(name)}"
        if (pair := stacked(path, parts, where)) is not None:
            whole[path] = pair
            continue
        rank, scale = (rule.rank(path), rule.scale(path)) if rule else (None, 1.0)
        given = Given(where, config, rank, scale, path, stored.shared, known, base)
        change = update(parts, given, "peft")
        if change is not None:
            changes[path] = change
    pairs = {**_pairs(changes), **whole}
    return Pairs(
        unfold(pairs, config, rule.rank if rule else lambda path: 1, name),
        {path: widened(parts["bias"]) for path, parts in stored.modules.items() if "bias" in parts}
        | {path: change.bias for path, change in changes.items() if change.bias is not None},
        stored.alphas,
        stored.extras,
        (*stored.oddities, *_oddities(changes, pairs), *_lost(stored.modules, changes, config)),
        whole_forms(count(changes.values())),
    )


def _check_extras(stored: Stored, config: Mapping[str, Any], name: str) -> None:
    """No tensor beside the pairs may have a part in their updates.

    Raises:
        IncompatibleError: one has, or nobody knows.
    """
    heads = config.get("modules_to_save") or []
    listed = Listed(map(str, heads) if isinstance(heads, list | set | tuple) else ())
    modules = {PREFIX + path.replace(WRAPPED, "") for path in stored.modules}
    refuse_inside(stored.extras, modules, name)
    extras = stored.extras.items()
    unlisted = {key: t for key, t in extras if listed.holder(key.rpartition(".")[0]) is None}
    refuse_around(unlisted, modules, name, biased=config.get("bias", "none") != "none")


def _pairs(changes: Mapping[str, Update]) -> dict[str, Pair]:
    told = any(FORMS[change.form].told for change in changes.values())
    of_unet = told and changes.keys() <= models.first_names("unet").keys()
    pairs = {}
    for path, change in changes.items():
        kernel = _kernel(path, change, of_unet) if FORMS[change.form].told else change.kernel
        target = Target(
            path, kind="conv" if kernel else change.kind, layout=Layout(kernel=kernel, blocks=change.blocks)
        )
        pairs[path] = Pair(target, change.up, change.down, change.rank, FORMS[change.form].scaled)
    return pairs


def _kernel(path: str, change: Update, of_unet: bool) -> tuple[int, ...]:
    """The kernel of a LoHa or LoKr convolution: PEFT keeps it in the columns, and a length k as k×1."""
    if change.kernel:
        return change.kernel[:1] if _long(change.kernel) else change.kernel
    known = unet.kernel(path) if of_unet else ()
    return known if change.down.shape[1] % prod(known) == 0 else ()


def _long(kernel: tuple[int, ...]) -> bool:
    return kernel[1:] == (1,) and kernel[0] > 1


def _oddities(changes: Mapping[str, Update], pairs: Mapping[str, Pair]) -> list[str]:
    """What was made of the forms, and what the shapes of some leave open."""
    told = counted(count(changes.values()))
    made = {path: change for path, change in changes.items() if FORMS[change.form].told}
    if long := [path for path, change in made.items() if _long(change.kernel)]:
        told.append(f"{_some(long)} may be a 1-d convolution or one of k×1: it is taken as 1-d")
    if flat := [path for path in made if CONV.search(path) and not pairs[path].target.layout.kernel]:
        told.append(
            f"{_some(flat)} looks like a convolution, whose kernel is not in the file: it is kept as a "
            "matrix, which PEFT loads into linear layers only"
        )
    return told


def _lost(
    modules: Collection[str], changes: Mapping[str, Update], config: Mapping[str, Any]
) -> Iterator[str]:
    """Modules that its config speaks of and that are gone as a whole, as one whose only tensor is missing."""
    said = config.get("target_modules")
    if not isinstance(said, list) or not any(FORMS[change.form].told for change in changes.values()):
        return
    gone = [name for name in map(str, said) if not any(f".{path}".endswith(f".{name}") for path in modules)]
    if gone:
        yield (
            f"its config adapts {_some(gone)}, and its file has nothing of it: if the base has such modules, "
            "tensors are missing"
        )


def _some(paths: Sequence[str]) -> str:
    more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
    return f"{printable(paths[0])}{more}"
