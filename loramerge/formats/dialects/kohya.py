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

import numpy as np

from loramerge.adapters.adapter import Adapter, Held, Tensor
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, printable, say
from loramerge.formats import models
from loramerge.formats.dialects.dialect import Dialect, Header, Names, Scales, Widths
from loramerge.formats.dialects.grain import fused, placed
from loramerge.formats.dialects.places import first_name, is_flat, is_sdxl, is_t5, part, unnamed
from loramerge.formats.dialects.reader import read_modules
from loramerge.formats.forms.form import Update
from loramerge.formats.forms.parts import by_module

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
MODULES = {"transformer": "networks.lora_flux", "unet": "networks.lora"}
DYNAMIC = "Dynamic"  # what sd-scripts writes for ranks that differ


class Kohya(Dialect):
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
        modules = read_modules(header, found, _places, self.zero_is_rank)
        return modules.adapter(self, header, found.rest, "the scale is 1 there, as kohya has it")

    def adopt(self, adapter: Adapter) -> Adapter:
        if adapter.dialect == self.name:
            return fused(adapter, strict=False)
        return self._renamed(placed(adapter, self.words, flat=True), self.home)

    def home(self, target: Target) -> Target:
        if target.kind not in self.kinds or target.layout.blocks > 1:
            raise IncompatibleError(
                f"{printable(target)} is {_odd(target)}, for which kohya's format has no name: leave it out "
                f"with {say('exclude')}."
            )
        if target.component not in COMPONENTS.values():
            raise unnamed(target, self.words)
        known = models.by_flat(part(target))
        flat = models.flat(first_name(target))
        return replace(target, path=known.get(flat, models.flat(target.path)))

    def keys(self, targets: Iterable[Target]) -> Names:
        whole = list(targets)
        xl = is_sdxl(whole)
        several = xl or any(t.component not in ("unet", "text_encoder") for t in whole)
        apart = any(t.component == "transformer" and t.path in models.owner("transformer") for t in whole)

        def names(target: Target) -> tuple[str, str]:
            first = target.path
            if xl or (target.component != "unet" and not apart):
                first = first_name(target)
            name = f"{_prefix(target, several, apart)}_{models.flat(first)}"
            return f"{name}.lora_down.weight", f"{name}.lora_up.weight"

        return names

    def beside(self, widths: Widths, scales: Scales) -> Mapping[str, Tensor]:
        names = self.keys(widths)
        return {
            f"{names(target)[0].partition('.')[0]}.alpha": Held(
                np.array(scales.get(target, 1.0) * width, np.float32)
            )
            for target, width in widths.items()
        }

    def scales(self, widths: Widths) -> Scales:
        """One alpha for all modules, since diffusers takes that of most for many of the others."""
        most = max(widths.values(), default=0)
        return {target: most / width for target, width in widths.items() if width != most}

    def metadata(self, widths: Widths, scales: Scales, kept: Mapping[str, str], bare: bool) -> dict[str, str]:
        """What sd-scripts and its user interfaces look for, and what still holds of the base model."""
        components = {target.component for target in widths}
        module = next((name for part, name in MODULES.items() if part in components), "networks.lora")
        known = not any(target.component == "unet" and is_flat(target) for target in widths)
        conv = [target for target in widths if set(target.layout.kernel) - {1}]
        linear = [target for target in widths if not set(target.layout.kernel) - {1}] or conv
        alphas = {target: width * scales.get(target, 1.0) for target, width in widths.items()}
        said = f'{{"conv_dim": "{_one(widths, conv)}", "conv_alpha": "{_one(alphas, conv)}"}}'
        return {
            **kept,
            **({"ss_network_module": module} if known else {}),  # each model of musubi-tuner has its own
            "ss_network_dim": _one(widths, linear),
            "ss_network_alpha": _one(alphas, linear),
            "ss_network_args": said if conv else "{}",
        }


KOHYA = Kohya()


def _one(numbers: Mapping[Target, float], targets: Iterable[Target]) -> str:
    """The number that all of these targets have."""
    found = {f"{numbers[target]:g}" for target in targets}
    return found.pop() if len(found) == 1 else DYNAMIC


def _places(changes: Mapping[str, Update]) -> dict[str, Target]:
    """Module name -> the target it means."""
    split = {module: KEY.match(f"{module}.") for module in changes}
    named = {module: (key["prefix"], key["flat"]) for module, key in split.items() if key}
    table = models.by_flat("transformer")
    flux = models.is_flux(
        {
            table.get(flat, ""): (changes[module].up.shape[0], changes[module].down.shape[1])
            for module, (prefix, flat) in named.items()
            if COMPONENTS[prefix] in ("unet", "transformer")
        }
    )
    sd3 = any(flat.startswith("joint_blocks") for _, flat in named.values())
    return {module: _target(prefix, flat, flux, sd3) for module, (prefix, flat) in named.items()}


def _target(prefix: str, flat: str, flux: bool, sd3: bool) -> Target:
    component = COMPONENTS[prefix]
    if component in ("unet", "transformer"):
        if flux:
            return Target(models.by_flat("transformer")[flat], component="transformer")
        unet = models.by_flat("unet")
        if flat in unet and prefix != "lora_transformer":
            return Target(unet[flat], component="unet")
        return Target(flat, component=component)
    if flat in models.by_flat("t5"):
        return Target(models.by_flat("t5")[flat], component="text_encoder_3" if sd3 else "text_encoder_2")
    return Target(models.by_flat("text_encoder").get(flat, flat), component=component)


def _prefix(target: Target, several: bool, apart: bool) -> str:
    """`several`: the pipeline has more text encoders than one.   apart: Flux under diffusers' names."""
    if target.component == "transformer":
        known = target.path in models.known("transformer") and not apart
        return "lora_unet" if known else "lora_transformer"
    if target.component.startswith("text_encoder"):
        number = (
            "3" if is_t5(target.path) else target.component.removeprefix("text_encoder").lstrip("_") or "1"
        )
        return f"lora_te{number}" if several else "lora_te"
    return next(prefix for prefix, component in COMPONENTS.items() if component == target.component)


def _odd(target: Target) -> str:
    return "a grouped convolution" if target.kind == "conv" else f"an {target.kind}"
