"""The scale of a LoKr of two whole matrices, as LyCORIS trains it: 1, or √dim under its option rs_lora.

LyCORIS sets alpha = dim there, and stores alpha · dim/√dim for rs_lora, else alpha. So the scale is stored,
too, as its cube root, if one knows that rs_lora was on. Only the settings of the training tell that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import cbrt, isclose, sqrt
from typing import Any

from loramerge.formats.peft.config import plausible


def whole_scale(metadata: Mapping[str, str], alpha: float | None, kernel: tuple[int, ...]) -> float:
    """The scale of such a module.

    >>> whole_scale({"ss_network_dim": "16", "ss_network_args": '{"rs_lora": "True"}'}, None, ())
    4.0
    """
    args = _args(metadata) or {}
    if str(args.get("rs_lora", "")).lower() not in ("true", "1"):
        return 1.0
    wide = any(size > 1 for size in kernel)
    usual = metadata.get("ss_network_dim")
    dim = _number(args.get("conv_dim", usual) if wide else usual)
    if dim is not None:
        return sqrt(dim)
    return cbrt(alpha) if alpha and alpha > 0 else 1.0


def leaves_open(metadata: Mapping[str, str], alpha: float | None) -> bool:
    """Whether such a module may have been trained with rs_lora, as far as its file tells."""
    if _args(metadata) is not None or not alpha or alpha <= 0:
        return False
    root = cbrt(alpha)
    return not alpha.is_integer() or (root > 1.5 and isclose(root, round(root), rel_tol=1e-6))


def _args(metadata: Mapping[str, str]) -> Mapping[str, Any] | None:
    try:
        found = json.loads(metadata.get("ss_network_args", ""))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _number(value: Any) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if found > 0 and plausible(found) else None
