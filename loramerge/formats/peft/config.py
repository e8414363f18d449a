"""What a PEFT adapter_config.json says about scales, and which adapters it rules out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from loramerge.adapters.late import late
from loramerge.adapters.limits import FACTOR, beyond
from loramerge.errors import IncompatibleError, SourceError, printable, say
from loramerge.formats.forms.refusals import refuse_settings
from loramerge.formats.forms.table import TYPES
from loramerge.formats.peft.patterns import Patterns
from loramerge.formats.routers import refuse_routed

# lora_ga too: its init takes s·BA out of the base weights, and a reload does not
CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga")  # inits that take their factors out of the base weights
ROUTED = "A router chooses among its adapters at run time: name these adapters instead, to merge or to route."
ROUTED_TYPES = ("XLORA", "POLY", "LILY", "SRMOLE", "ARROW", "METEORA", "LORAMOE")
CONVERTS = "PEFT's save_as_lora converts it to LoRA."
MERGES = (
    "Merge it into its base model with PEFT's merge_and_unload, and take the difference of the two with "
    "loramerge extract."
)
PROMPTS = "It trains a prompt and no weights, so it is no update of weights."
CONVERTIBLE = frozenset(  # whose layers say so in PEFT 0.21
    "C3A DELORA FOURIERFT GRALORA MISS PSOFT RANDLORA TINYLORA UNILORA VBLORA VERA WAVEFT".split()
)
PROMPTING = late(r".*PROMPT.*|P_TUNING|PREFIX_TUNING|CPT|CARTRIDGE")


def _instead(kind: str) -> str:
    """What helps with an adapter of a type that is not read."""
    if kind in ROUTED_TYPES:
        return ROUTED
    if kind in CONVERTIBLE:
        return CONVERTS
    return PROMPTS if PROMPTING.fullmatch(kind) else MERGES


class Scaling(Protocol):
    """How a config decides the rank and the scale of a module."""

    def rank(self, path: str) -> int: ...
    def scale(self, path: str) -> float: ...


@dataclass(frozen=True, eq=False, repr=False)
class Scales:
    """The scale of every module: alpha / r, or alpha / √r for rsLoRA, with PEFT's patterns.

    Args:
        r, alpha: the global values.   rslora: divide by √r.
        ranks, alphas: values for the modules that a pattern names; the first match wins.
    """

    r: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rank_patterns: Patterns
    alpha_patterns: Patterns

    def rank(self, path: str) -> int:
        """The rank that the config gives a module."""
        key = self.rank_patterns.first_match(path)
        return self.r if key is None else self.ranks[key]

    def scale(self, path: str) -> float:
        """The factor of ``lora_B @ lora_A`` in a module, in float64.

        A rank pattern without an alpha pattern changes the scale: alpha stays the global one.
        """
        key = self.alpha_patterns.first_match(path)
        alpha = self.alpha if key is None else self.alphas[key]
        rank = self.rank(path)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def scales(config: Mapping[str, Any], name: str) -> Scaling:
    """The scale rule of a config: LoRA's, under the name that its type has for alpha.

    Raises:
        SourceError: r or alpha is absent, or a setting is of another type than it must be.
        IncompatibleError: a pattern uses more of regular expressions than is read.
    """
    if config.get("peft_type") == "ADALORA":
        return _adaptive(config, name)
    kind = config.get("peft_type")  # of a live config no text, but equal to one
    alpha = next((setting for known, setting in TYPES.items() if known == kind), "lora_alpha")
    if not alpha:
        from loramerge.formats.peft.rules import Unscaled  # LoRA needs none of it

        return Unscaled(_rank(config.get("r") or 1, "r", name))
    ranks = {k: _rank(v, f"rank_pattern of {k}", name) for k, v in _table(config, "rank_pattern", name)}
    alphas = {k: _number(v, f"alpha_pattern of {k}", name) for k, v in _table(config, "alpha_pattern", name)}
    return Scales(
        _rank(config.get("r"), "r", name),
        _number(config.get(alpha), alpha, name),
        alpha == "lora_alpha" and _flag(config.get("use_rslora"), "use_rslora", name),
        ranks,
        alphas,
        Patterns("rank_pattern", ranks, source=name),
        Patterns("alpha_pattern", alphas, source=name),
    )


def _adaptive(config: Mapping[str, Any], name: str) -> Scaling:
    from loramerge.formats.peft.rules import Adaptive  # LoRA needs none of it

    masks = _table(config, "rank_pattern", name)
    for key, mask in masks:
        if not isinstance(mask, list) or not all(isinstance(on, bool) for on in mask):
            raise SourceError(_expected(mask, f"rank_pattern of {key}", name, "a list of true and false"))
    alpha = _number(config.get("lora_alpha"), "lora_alpha", name)
    if alpha <= 0:
        raise SourceError(_expected(alpha, "lora_alpha", name, "a number above 0"))
    left = {key.removesuffix(".default").rpartition(".")[0]: sum(mask) for key, mask in masks}
    return Adaptive(_rank(config.get("init_r"), "init_r", name), alpha, left)


def check_mergeable(config: Mapping[str, Any], name: str, known_start: bool = False) -> None:
    """Refuse, by name, what no form reads.

    Args:
        known_start: the adapter that training began with is at hand, to be subtracted.

    Raises:
        IncompatibleError: a PEFT type that is not read, or a setting under which its form is not the update.
        SourceError: a setting of how it is stored, or for which base, is of another type than it must be.
    """
    _flag(config.get("fan_in_fan_out"), "fan_in_fan_out", name)
    for field in ("base_model_name_or_path", "revision"):
        if not isinstance(config.get(field), str | None):  # taken for none, it would fit every base
            raise SourceError(_expected(config[field], field, name, "a text"))
    kind = config.get("peft_type", "LORA")
    refuse_routed((), name, config)
    if kind not in tuple(TYPES):
        others = "" if kind in ROUTED_TYPES else f"; {', '.join(sorted(TYPES))} are"
        raise IncompatibleError(
            f"{printable(name)} is a PEFT adapter of type {printable(kind)}, which is not read{others}. "
            f"{_instead(str(kind))}"
        )
    refuse_settings(config, name)
    if kind == "UNILORA" and not config.get("save_indices"):
        raise IncompatibleError(
            f"{printable(name)} is Uni-LoRA without its indices, which PEFT deals out in the order of the "
            f"model's layers, and no file tells that: save it with save_indices=True. {CONVERTS}"
        )
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith("loftq"):
        raise IncompatibleError(
            f"{printable(name)} was initialised with {printable(init)}, which corrects a base that it "
            "quantises itself, so its factors are not an update of the original model: merge it into that "
            "base."
        )
    if changes_base(config) and not known_start:
        raise IncompatibleError(
            f"{printable(name)} was initialised with {printable(init)}, which changes the base weights, so "
            "its factors are not an update of the original model. Give the adapter that its training began "
            f"with by {say('initial', {'SOURCE': 'PATH'})}, or save it with PEFT's "
            f"path_initial_model_for_weight_conversion."
        )


def changes_base(config: Mapping[str, Any]) -> bool:
    """Whether its initialisation took the first factors out of the base weights."""
    init = config.get("init_lora_weights")
    return isinstance(init, str) and init.lower().startswith(CHANGES_BASE)


def _table(config: Mapping[str, Any], field: str, name: str) -> list[tuple[str, Any]]:
    value = config.get(field) or {}
    if not isinstance(value, dict):
        raise SourceError(f"{field} of {printable(name)} must be a table of module names, not {value!r:.60}.")
    return list(value.items())


def _rank(value: Any, field: str, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SourceError(_expected(value, field, name, "a whole number from 1 on"))
    return value


def _number(value: Any, field: str, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not plausible(value):
        raise SourceError(_expected(value, field, name, f"0, or from {1 / FACTOR:g} to {FACTOR:g} in size"))
    return float(value)


def _flag(value: Any, field: str, name: str) -> bool:
    if not isinstance(value, bool | None):  # 1 and "true" would be true to PEFT
        raise SourceError(_expected(value, field, name, "true or false"))
    return value is True


def plausible(alpha: int | float) -> bool:
    """Whether an alpha can be meant: no NaN, and of a size that leaves a scale to compute with."""
    return not beyond(alpha)


def _expected(value: Any, field: str, name: str, what: str) -> str:
    if value is None:
        return f"The config of {printable(name)} does not give {printable(field)}, which must be {what}."
    return f"{printable(field)} of {printable(name)} must be {what}, not {printable(repr(value), 60)}."
