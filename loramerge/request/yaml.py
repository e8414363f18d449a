"""Settings as YAML that is shown: it reads back as the same, and means nothing to a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def as_yaml(values: Mapping[str, Any]) -> str:
    r"""Settings as YAML, in the letters that they have; escaped if a terminal would obey some of them.

    >>> print(as_yaml({"source": "é"}), as_yaml({"source": "\u202e"}), end="")
    source: é
     source: "\u202E"
    """
    import yaml  # only for those who have a recipe

    text = str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110))
    if text.replace("\n", "").isprintable():
        return text
    return str(yaml.safe_dump(values, sort_keys=False, width=110))
