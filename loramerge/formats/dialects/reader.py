"""From the parts of modules to updates under their targets: what every dialect with alphas does alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod

from loramerge.adapters.adapter import Slot
from loramerge.adapters.limits import check_units
from loramerge.adapters.target import Layout, Target
from loramerge.errors import EmptyError, IncompatibleError, SourceError, printable
from loramerge.formats.dialects.dialect import Header
from loramerge.formats.dialects.grain import stacked
from loramerge.formats.forms.forms import Update, update
from loramerge.formats.forms.parts import Parts, Sorted
from loramerge.formats.models import unet
from loramerge.formats.peft.number import number
from loramerge.formats.peft.pairs import check_full

MOST_STACKED = 16  # pairs in one fused module
MOST_ENTRIES = 2**28  # of a factor that is computed: 2 GiB while it is
LINEAR = re.compile(
    r"\.transformer_blocks\.|emb|\.time_emb_proj$"
)  # modules of a U-Net that are no convolution
FORMS = {"loha": "LoHa", "lokr": "LoKr", "full": "full"}


@dataclass(eq=False)
class Found:
    """What has been read: updates, how many of each form, and the modules that do not say their alpha."""

    slots: dict[Target, Slot] = field(default_factory=dict)
    forms: Counter[str] = field(default_factory=Counter)
    silent: list[str] = field(default_factory=list)

    def scale(self, header: Header, alpha: float | None, change: Update, module: str) -> float:
        """alpha / rank in float64; without an alpha, the user's or 1."""
        self.forms[change.form] += 1
        if change.rank is None:  # a whole matrix, or a product of two: they are taken as they are
            return 1.0
        if alpha is not None:
            return alpha / change.rank
        self.silent.append(module)
        return 1.0 if header.alpha is None or header.alpha == "rank" else float(header.alpha) / change.rank

    def oddities(self, header: Header, rule: str) -> list[str]:
        """Sentences about what was assumed. `rule`: what a missing alpha means in this dialect."""
        told = [] if self.silent else header.unused_alpha()
        if exact := [f"{self.forms[form]} {word}" for form, word in FORMS.items() if self.forms[form]]:
            told.append(f"its {' and '.join(exact)} modules are read as low-rank updates, exactly")
        if self.silent and header.alpha is None:
            count = len(self.silent)
            total = len(self.slots)
            said = "no module says an" if count == total else f"{count} of {total} modules say no"
            told.append(f"{said} alpha, so {rule}")
        return told


def read_modules(
    header: Header,
    found: Sorted,
    place: Callable[[Mapping[str, Update]], Mapping[str, Target]],
    zero_is_rank: bool = False,
) -> Found:
    """The updates of these modules.

    Args:
        place: the targets that the names of the modules mean, given the updates.
        zero_is_rank: an alpha of 0 is none.

    Raises:
        SourceError, IncompatibleError: as `forms.update`; two modules of one target; an alpha that is none.
    """
    if not found.modules:
        some = ", ".join(printable(key, 40) for key in list(found.rest)[:3]) or "no tensors"
        raise EmptyError(f"{printable(header.name)} holds no LoRA pair ({some}): it is no LoRA adapter.")
    shown = {module: f"{printable(module)} in {printable(header.name)}" for module in found.modules}
    changes = {module: _update(parts, shown[module]) for module, parts in sorted(found.modules.items())}
    targets, result = place(changes), Found()
    for module, change in changes.items():
        target = shaped(targets[module], change)
        if target in result.slots:
            raise SourceError(
                f"{printable(header.name)} holds {printable(target)} twice, under two spellings."
            )
        _check_size(change, shown[module])
        alpha = _alpha(found.modules[module], shown[module], zero_is_rank)
        scale = result.scale(header, alpha, change, module)
        result.slots[target] = Slot(change.up, change.down, scale)
    return result


def _check_size(change: Update, where: str) -> None:
    """A product of small factors may be of any size: no small file may ask for gigabytes.

    Raises:
        IncompatibleError: it does.
    """
    outs, ins, units = change.up.shape[0], change.down.shape[1], change.down.shape[0]
    check_units(where, (outs, ins), [units])
    if max(outs, ins) * units > MOST_ENTRIES and change.form != "lora":
        raise IncompatibleError(
            f"The factors of {where} mean an update of {outs}×{ins}, with {units} units: no model has such "
            "layers, or it must be read by the library that wrote it."
        )


def _update(parts: Parts, where: str) -> Update:
    downs = sorted((name for name in parts if name.startswith("down.")), key=_number)
    if not downs:
        return update(parts, where)
    ups = sorted((name for name in parts if name.startswith("up.")), key=_number)
    if [_number(name) for name in ups] != [_number(name) for name in downs] or len(downs) > MOST_STACKED:
        raise SourceError(f"The stacked pairs of {where} are not complete: the file was cut or badly saved.")
    each = [
        update({"up": parts[up], "down": parts[down]}, f"{down} of {where}")
        for up, down in zip(ups, downs, strict=True)
    ]
    check_full(where, *(one.up for one in each))
    if len({(one.rank, one.down.shape) for one in each}) > 1:
        raise SourceError(f"The stacked pairs of {where} do not share a rank.")
    up, down = stacked([one.up for one in each], [one.down for one in each])
    return Update(up, down, "lora", each[0].rank)


def _number(name: str) -> int:
    return int(name.rpartition(".")[2])


def _alpha(parts: Parts, where: str, zero_is_rank: bool) -> float | None:
    """The alpha that a module says, if it says one."""
    if "alpha" not in parts:
        return None
    value = number(parts["alpha"], where)
    return None if zero_is_rank and not value else value


def shaped(target: Target, change: Update) -> Target:
    """The target with its kind: what the shapes say, and where they leave it open, the name."""
    kernel, columns = change.kernel, change.down.shape[1]
    known = unet.kernel(target.path) if target.component == "unet" else ()
    if not kernel and known and columns % prod(known) == 0:
        kernel = known  # older tools flatten the kernel of a convolution
    if set(kernel) == {1} and (target.component != "unet" or LINEAR.search(target.path)):
        kernel = ()  # a linear layer whose factors are stored as a convolution's
    if not kernel:
        return target
    return replace(target, kind="conv", layout=Layout(kernel=tuple(kernel)))
