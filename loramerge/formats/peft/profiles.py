"""How the ranks of a merge are written: `portable`, one for all by zero padding; `compact`, each its own.

llama.cpp and others ignore patterns without saying so, which is why `portable` has none. `compact` names an
alpha for every rank that it names, so that a reader of both scales each module by 1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Literal, get_args

from loramerge.adapters.target import Target
from loramerge.errors import UsageError, say
from loramerge.formats.peft.keys import common_rank, own_ranks

Profile = Literal["portable", "compact"]
PROFILES: tuple[Profile, ...] = get_args(Profile)


def check_profile(profile: str) -> Profile:
    """Raises UsageError: there is no such profile."""
    for known in PROFILES:
        if profile == known:
            return known
    raise UsageError(f"{say('profile', profile)} is not one of {', '.join(map(repr, PROFILES))}.")


def arranged(profile: Profile, units: Mapping[Target, int]) -> tuple[int, dict[str, int]]:
    """r, and the ranks of the module paths that have another, for modules of so many units.

    >>> arranged("compact", {Target("a"): 2, Target("b"): 3, Target("c"): 3})
    (3, {'a': 2})
    """
    if profile == "portable":
        return common_rank(units), {}
    ranks = own_ranks(units)
    times = Counter(ranks.values())
    most = max(times, key=lambda rank: (times[rank], rank), default=1)
    return most, {path: rank for path, rank in sorted(ranks.items()) if rank != most}


# vLLM reads both patterns; SGLang reads none, but its buffers hold one rank, so it stops at another
def patterns(ranks: Mapping[str, int]) -> dict[str, int]:
    """The keys under which a PEFT config names exactly these modules.

    PEFT looks for a key at the end of a module's name; an anchored one means that name alone.

    >>> patterns({"h.0.q": 2})
    {'^h\\\\.0\\\\.q': 2}
    """
    return {f"^{re.escape(path)}": rank for path, rank in ranks.items()}
