"""kohya: `_` for every dot, an alpha beside every pair. sd-scripts, musubi-tuner, LyCORIS, OneTrainer.

    lora_unet_<module>.lora_down.weight (r, in)   .lora_up.weight (out, r)   .alpha ()
    lora_te_, lora_te1_, lora_te2_, lora_te3_<module>: the text encoders

The scale is alpha / r of each module; without an alpha, or with 0, it is 1. U-Nets have diffusers' names in
Stable Diffusion 1 and 2, and the first ones in SDXL; Flux has the names of Black Forest Labs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.spelling import Spelling
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, printable, say
from loramerge.formats import models
from loramerge.formats.dialects.dialect import Header, Names, Scales, Widths
from loramerge.formats.dialects.model import PARTS, RAW, Identity, Placed, identified, said
from loramerge.formats.dialects.places import first_name, is_decoder, is_flat, is_sdxl, is_t5, part, unnamed
from loramerge.formats.dialects.reader import read_modules
from loramerge.formats.dialects.spelling import Spelled
from loramerge.formats.forms.form import Update
from loramerge.formats.forms.parts import by_module
from loramerge.formats.models.family import FIRST, OURS

KEY = re.compile(
    r"(?P<prefix>lora_(?:unet|te[123]?|transformer|prior_unet|prior_te)|lycoris)_(?P<flat>[^.]+)\.", re.DOTALL
)
COMPONENTS = {  # prefix -> component
    "lora_unet": "unet",
    "lora_transformer": "transformer",
    "lycoris": "transformer",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
    "lora_te3": "text_encoder_3",
    "lora_prior_unet": "prior_unet",
    "lora_prior_te": "prior_text_encoder",
}
MODULES = {  # the networks of sd-scripts, by family
    "flux.1": "networks.lora_flux",
    "chroma": "networks.lora_flux",
    "sd3": "networks.lora_sd3",
    "lumina-2": "networks.lora_lumina",
}
DYNAMIC = "Dynamic"  # what sd-scripts writes for ranks that differ


class Kohya(Spelled):
    name = "kohya"
    words = "a kohya LoRA"
    tools = "sd-scripts, musubi-tuner, LyCORIS, OneTrainer, SimpleTuner"
    spelling = (
        "`lora_unet_<flat>`, `lora_te_`, `lora_te1_` … `lora_te3_`, `lora_transformer_`, `lycoris_`; "
        "`.lora_down.weight`, `.lora_up.weight`, `.alpha`"
    )
    strength = "`alpha/r`; without an alpha, or with 0, it is 1"
    writes = True
    keeps_alpha = True
    zero_is_rank = True
    differences = True
    hashed = True

    def detects(self, header: Header) -> bool:
        return any(KEY.match(key) for key in header.tensors)

    def read(self, header: Header) -> Adapter:
        found = by_module(header.tensors, header.name)
        foreign = [key for key in found.modules if not KEY.match(f"{key}.")]
        if foreign:
            raise IncompatibleError(
                f"{printable(header.name)} mixes names of kohya with others ({printable(foreign[0], 80)}): "
                "it is not clear how these are scaled."
            )
        modules = read_modules(header, found, partial(_places, said(header.metadata)), self.zero_is_rank)
        return header.adapter(
            self,
            modules.slots,
            extras=found.rest,
            oddities=modules.oddities(header, "the scale is 1 there, as kohya has it"),
            said_alpha=not modules.silent,
            placed=modules.placed,
            full=modules.full,
        )

    def home(self, target: Target) -> Target:
        if target.kind not in self.kinds or target.layout.blocks > 1:
            raise IncompatibleError(
                f"{printable(target)} is {_odd(target)}, for which kohya's format has no name: leave it out "
                f"with {say('exclude')}."
            )
        if target.component in PARTS and (self.holds(target) or "." in target.path):
            return self.settled(target)
        if target.component not in COMPONENTS.values():
            raise unnamed(target, self.words)
        known = models.by_flat(part(target))
        flat = models.flat(first_name(target))
        return replace(target, path=known.get(flat, models.flat(target.path)))

    def keys(self, targets: Iterable[Target]) -> Names:
        whole = list(targets)
        several = is_sdxl(whole) or any(t.component not in ("unet", "text_encoder") for t in whole)
        first = self.own.naming == FIRST if "unet" in self.own.prefixes else is_sdxl(whole)

        def names(target: Target) -> tuple[str, str]:
            path = self.spells(target) or target.path
            if target.component not in ("unet", *PARTS) or (target.component == "unet" and first):
                path = first_name(target)
            usual = "lora_unet" if self.holds(target) else _prefix(target, several)
            prefix = self.own.prefixes.get(target.component) or f"{usual}_"
            name = f"{prefix}{models.flat(path)}"
            return f"{name}.lora_down.weight", f"{name}.lora_up.weight"

        return names

    def scales(self, widths: Widths) -> Scales:
        """One alpha for all modules, since diffusers takes that of most for many of the others."""
        most = max(widths.values(), default=0)
        return {target: most / width for target, width in widths.items() if width != most}

    def metadata(self, widths: Widths, scales: Scales, kept: Mapping[str, str], bare: bool) -> dict[str, str]:
        """What sd-scripts and its user interfaces look for, and what still holds of the base model."""
        module = self._network(widths)
        conv = [target for target in widths if set(target.layout.kernel) - {1}]
        linear = [target for target in widths if not set(target.layout.kernel) - {1}] or conv
        alphas = {target: width * scales.get(target, 1.0) for target, width in widths.items()}
        said = f'{{"conv_dim": "{_one(widths, conv)}", "conv_alpha": "{_one(alphas, conv)}"}}'
        return {
            **kept,
            **self.told(widths, kept),
            **({"ss_network_module": module} if module else {}),
            "ss_network_dim": _one(widths, linear),
            "ss_network_alpha": _one(alphas, linear),
            "ss_network_args": said if conv else "{}",
        }

    def _network(self, targets: Iterable[Target]) -> str:
        """What sd-scripts calls the network; "" where it is not known: each model of musubi-tuner has one."""
        whole = list(targets)
        if any(target.component in PARTS for target in whole):
            names = {MODULES.get(family.name, "") for family in (self.model.families if self.model else ())}
            return max(names, default="")
        flat = any(target.component == "unet" and is_flat(target) for target in whole)
        return "" if flat else "networks.lora"


KOHYA = Kohya()


def _one(numbers: Mapping[Target, float], targets: Iterable[Target]) -> str:
    """The number that all of these targets have."""
    found = {f"{numbers[target]:g}" for target in targets}
    return found.pop() if len(found) == 1 else DYNAMIC


def _places(said: str, changes: Mapping[str, Update]) -> Placed:
    """What the names of modules mean."""
    split = {module: _split(module) for module in changes}
    own = {m: flat for m, (prefix, flat) in split.items() if COMPONENTS[_plain(prefix)] in RAW}
    prefixes = {COMPONENTS[_plain(prefix)]: prefix for prefix, _ in reversed(split.values())}
    unets = {} if "lora_transformer_" in prefixes.values() else models.by_flat("unet")
    sizes = {flat: (changes[m].up.shape[0], changes[m].down.shape[1]) for m, flat in own.items()}
    known = [unets[flat] for flat in own.values() if flat in unets]
    hint = FIRST if "lora_unet_" in prefixes.values() else ""
    found = Identity({}, {}) if known else identified(sizes, said, hint)
    families, names = found.families, unets if known else found.table
    there = PARTS[0] if families else "unet" if known else ""
    targets = {
        module: Target(names[flat], component=there)
        if module in own and flat in names
        else _target(COMPONENTS[_plain(prefix)], flat, "sd3" in families)
        for module, (prefix, flat) in split.items()
    }
    spelled = {there or part: prefix for part, prefix in prefixes.items() if part in RAW}
    spelled |= {targets[m].component: prefix for m, (prefix, _) in split.items() if m not in own}
    if known:
        naming = OURS if set(map(models.flat, known)) <= set(own.values()) else FIRST
        return Placed(targets, (), Spelling(naming, spelled))
    return Placed(targets, families, found.spelling(spelled))


def _split(module: str) -> tuple[str, str]:
    """(prefix, flat name) of a module; some tools double a part of the prefix."""
    found = KEY.match(f"{module}.")
    assert found is not None  # others are refused before
    prefix, flat = f"{found['prefix']}_", found["flat"]
    for more in ("_", "unet_"):
        if prefix == "lora_unet_" and flat.startswith(more) and len(flat) > len(more):
            return f"{prefix}{more}", flat.removeprefix(more)
    return prefix, flat


def _plain(prefix: str) -> str:
    return "lora_unet" if prefix.startswith("lora_unet_") else prefix.removesuffix("_")


def _target(component: str, flat: str, sd3: bool) -> Target:
    """What is not of a model whose names are known."""
    if component in RAW or not component.startswith("text_encoder"):
        return Target(flat, component=component)
    if flat in models.by_flat("t5"):
        return Target(models.by_flat("t5")[flat], component="text_encoder_3" if sd3 else "text_encoder_2")
    decoded = models.by_flat("decoder").get(flat, flat)
    return Target(models.by_flat("text_encoder").get(flat, decoded), component=component)


def _prefix(target: Target, several: bool) -> str:
    """`several`: the pipeline has more text encoders than one."""
    if target.component in PARTS:
        return "lora_transformer"
    if is_decoder(target.path) and target.component == "text_encoder":
        return "lora_te"  # as sd-scripts has it
    if target.component.startswith("text_encoder"):
        number = (
            "3" if is_t5(target.path) else target.component.removeprefix("text_encoder").lstrip("_") or "1"
        )
        return f"lora_te{number}" if several else "lora_te"
    return next(prefix for prefix, component in COMPONENTS.items() if component == target.component)


def _odd(target: Target) -> str:
    return "a grouped convolution" if target.kind == "conv" else f"an {target.kind}"
