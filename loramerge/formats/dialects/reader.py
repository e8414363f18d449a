"""From the parts of modules to updates under their targets: what every dialect with alphas does alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod

from loramerge.adapters.adapter import Adapter, Slot, Tensor
from loramerge.adapters.limits import check_units
from loramerge.adapters.target import Layout, Target
from loramerge.errors import IncompatibleError, SourceError, printable, say
from loramerge.formats.dialects.dialect import Dialect, Header
from loramerge.formats.dialects.lycoris import leaves_open, whole_scale
from loramerge.formats.dialects.model import Placed
from loramerge.formats.forms.dora import DORA, LENGTHS, of_image
from loramerge.formats.forms.form import Given, Parts, Update
from loramerge.formats.forms.parts import Sorted
from loramerge.formats.forms.table import ALPHA, NEEDS, counted, update, whole
from loramerge.formats.models import unet
from loramerge.formats.peft.number import number, scale

LINEAR = re.compile(
    r"\.transformer_blocks\.|emb|\.time_emb_proj$"
)  # modules of a U-Net that are no convolution


@dataclass(eq=False)
class Found:
    """What has been read: updates, how many of each form, modules without an alpha.

    `open` are those whose scale the settings of the training would tell, and these are not there; `turned`
    those that DoRA gives lengths, with their names and parts.
    """

    placed: Placed
    slots: dict[Target, Slot] = field(default_factory=dict)
    forms: Counter[tuple[str, bool]] = field(default_factory=Counter)
    silent: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    turned: dict[Target, tuple[str, Parts]] = field(default_factory=dict)

    @property
    def full(self) -> tuple[str, ...]:
        """The forms of full rank among them, by their words."""
        return whole(self.forms)

    def scale(self, header: Header, alpha: float | None, change: Update, module: str) -> float:
        """alpha / rank in float64; without an alpha, the user's or 1."""
        self.forms[change.form, change.full] += 1
        if change.form == "lokr" and change.rank is None:
            self.open += [module] * leaves_open(header.metadata, alpha)
            return whole_scale(header.metadata, alpha, change.kernel)
        if change.rank is None:  # a whole matrix: it is taken as it is
            return 1.0
        if alpha is not None:
            return alpha / change.rank
        self.silent.append(module)
        return 1.0 if header.alpha is None else scale(header.alpha, change.rank)

    def adapter(self, dialect: Dialect, header: Header, extras: Mapping[str, Tensor], rule: str) -> Adapter:
        """The adapter of these. `rule`: what a missing alpha means in this dialect."""
        told = self.oddities(header, rule)
        known = not self.silent
        return header.adapter(
            dialect, self.slots, extras=extras, oddities=told, said_alpha=known, full=self.full
        )

    def oddities(self, header: Header, rule: str) -> list[str]:
        """Sentences about what was assumed. `rule`: what a missing alpha means in this dialect."""
        told = [] if self.silent else header.unused_alpha()
        told += counted(self.forms)
        if self.silent and header.alpha is None:
            count = len(self.silent)
            total = len(self.slots)
            said = "no module says an" if count == total else f"{count} of {total} modules say no"
            told.append(f"{said} alpha, so {rule}")
        if self.open:
            told.append(
                f"{len(self.open)} LoKr of two whole matrices ({printable(self.open[0], 80)}) are read at "
                "scale 1: if LyCORIS trained them with rs_lora, which the file does not say, multiply by √dim"
            )
        return told


def read_modules(
    header: Header,
    found: Sorted,
    place: Callable[[Mapping[str, Update]], Placed],
    zero_is_rank: bool = False,
    settle: Callable[[Found], None] | None = None,
) -> Found:
    """The updates of these modules.

    Args:
        place: what the names of the modules mean, given the updates.
        zero_is_rank: an alpha of 0 counts as missing.
        settle: sets the scales that the file says elsewhere.

    Raises:
        SourceError, IncompatibleError: as `table.update`; two modules of one target; an alpha that is none.
    """
    if not found.modules:
        from loramerge.adapters.whole import no_pair  # an adapter has pairs

        raise no_pair(header.name, found.rest)
    shown = {module: f"{printable(module)} in {printable(header.name)}" for module in found.modules}
    changes = {
        module: change
        for module, parts in sorted(found.modules.items())
        if (change := update(_factors(parts), Given(shown[module]), "image"))
    }
    placed = place(changes)
    targets, result = placed.targets, Found(placed)
    for module, change in changes.items():
        target = shaped(targets[module], change)
        if target in result.slots:
            raise SourceError(
                f"{printable(header.name)} holds {printable(target)} twice, under two spellings."
            )
        check_units(shown[module], (change.up.shape[0], change.down.shape[1]), [change.down.shape[0]])
        alpha = _alpha(found.modules[module], shown[module], zero_is_rank)
        scale = result.scale(header, alpha, change, module)
        result.slots[target] = Slot(change.up, change.down, scale)
        if found.modules[module].keys() & set(LENGTHS):
            result.turned[target] = module, found.modules[module]
    if settle is not None:
        settle(result)
    _stretch(header, result)
    return result


def _factors(parts: Parts) -> Parts:
    """Those that any form has."""
    return {part: tensor for part, tensor in parts.items() if part not in LENGTHS}


def _stretch(header: Header, found: Found) -> None:
    """Give these modules the lengths that DoRA gives their weights.

    Raises:
        IncompatibleError: there is no base model, or it has other modules.
    """
    if not (modules := found.turned):
        return
    if header.base is None:
        first = printable(min(module for module, _ in modules.values()))
        raise IncompatibleError(
            f"{first} in {printable(header.name)} is stored as {DORA.words}, which needs {NEEDS['base']} to "
            f"become an update: name that model by {say('base', 'BASE')}, a path or a name on the Hub."
        )
    weights = header.base.weights({target: found.slots[target].shape for target in modules})
    for target, (module, parts) in modules.items():
        where = f"{printable(module)} in {printable(header.name)}"
        kernel = target.layout.kernel
        found.slots[target] = of_image(found.slots[target], parts, weights[target], kernel, where)
        found.forms[DORA.name, True] += 1


def _alpha(parts: Parts, where: str, zero_is_rank: bool) -> float | None:
    """The alpha that a module says, if it says one."""
    if ALPHA not in parts:
        return None
    value = number(parts[ALPHA], where)
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
