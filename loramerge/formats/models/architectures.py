"""The classes that the config.json of a model names; whoever wrote it may have written anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def architectures(config: Mapping[str, Any]) -> list[str]:
    """Their names, such as ``LlamaForCausalLM``.

    >>> architectures({"architectures": ["GPT2LMHeadModel", 3]}), architectures({"architectures": True})
    (['GPT2LMHeadModel'], [])
    """
    said = config.get("architectures")
    return [each for each in said if isinstance(each, str)] if isinstance(said, list) else []
