"""Forms that are recognised but not read, because their file alone gives no sum of low-rank updates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

from loramerge.errors import IncompatibleError, printable
from loramerge.formats.forms.form import Naming
from loramerge.formats.routers import RoutedError, way

BASE = "needs the base weights to become an update: merge it into its base model"
ROUTED = "chooses its units by the input and is no one update"  # `loramerge route` reads it


class Unread(NamedTuple):
    """One of them.

    Args:
        words: how messages call it.   why: the rest of the sentence after `words`.
        setting: the setting of PEFT's config that turns a plain pair into it.
        peft, image: a pattern of the ends of its keys in each naming.
    """

    words: str
    why: str
    setting: str = ""
    peft: str = ""
    image: str = ""


UNREAD = (
    Unread("QALoRA", "pools its input, so it has no low-rank update", "use_qalora"),
    Unread("block-diagonal LoRA", "is not read", "use_bdlora"),
    Unread("an activated LoRA", "works on some tokens only and has no one update", "alora_invocation_tokens"),
    Unread(
        "an Arrow router",
        "chooses among adapters at run time: name the adapters instead",
        "arrow_config",
    ),
    Unread("FlyLoRA", ROUTED, "bias_u", peft=r"lora_topk_bias(?:\.\w+)*"),
    Unread("LoRAMoE", ROUTED, "lora_nums", peft=r"lora_route\.weight|lora_[AB]\d+\.weight"),
    Unread("SMoRA", ROUTED, "activate_r", peft=r"lora_router\.weight"),
    Unread(
        "OFT",
        "turns the base weights, and adds nothing to them",
        peft=r"oft_blocks",
        image=r"oft_blocks|oft_diag|oft_R\.weight|rescale",
    ),
    Unread("GLoRA", BASE, image=r"[ab][12]\.weight|bm\.weight"),
    Unread("IA3", "multiplies the base weights, and has no low-rank update", image="on_input"),
    Unread(
        "a replaced weight",
        "is no update of the base weights",
        image="set_weight|reshape_weight|row_offset",
    ),
)


@cache
def _ends(naming: Naming) -> re.Pattern[str]:
    """How any key of them ends."""
    ends = "|".join(filter(None, (one.peft if naming == "peft" else one.image for one in UNREAD)))
    return re.compile(rf".+\.(?:{ends})", re.DOTALL)


def refuse_keys(keys: Iterable[str], naming: Naming, name: str) -> None:
    """Refuse a file that holds a tensor of one of them.

    Raises:
        IncompatibleError: it does.
    """
    for key in filter(_ends(naming).fullmatch, keys):
        one = next(one for one in UNREAD if _ended(key, one.peft if naming == "peft" else one.image))
        raise _refusal(
            one,
            f"{printable(name)} holds {one.words} ({printable(key, 80)}): it {one.why}.{_instead(one, name)}",
            name,
        )


def _ended(key: str, end: str) -> bool:
    return end != "" and re.fullmatch(rf".+\.(?:{end})", key, re.DOTALL) is not None


def refuse_settings(config: Mapping[str, Any], name: str) -> None:
    """Refuse a config that sets one of them.

    Raises:
        IncompatibleError: it does.
    """
    for one in UNREAD:
        if one.setting and config.get(one.setting):
            raise _refusal(
                one,
                f"{printable(name)} sets {one.setting}: {one.words} {one.why}.{_instead(one, name)}",
                name,
            )


def _refusal(one: Unread, said: str, name: str) -> IncompatibleError:
    return RoutedError(said, name, one.words.lower()) if one.why == ROUTED else IncompatibleError(said)


def _instead(one: Unread, name: str) -> str:
    """What reads it, if something of ours does."""
    return f" {way(name)}" if one.why == ROUTED else ""
