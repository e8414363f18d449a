"""The words that switch an adapter on, as far as its files say: those of image models often need one."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.original import read_text
from loramerge.errors import ChangedError, LoramergeError

SAID = ("modelspec.trigger_phrase", "trigger_phrase", "trigger_words", "instance_prompt", "activation text")
TAGS = "ss_tag_frequency"  # how often the captions of its training had which words
CARD = re.compile(r"^(?:instance_prompt|trigger_words?):[ \t]*[\"']?([^\n\"']{1,200})", re.MULTILINE)
LIMIT, MOST = 2**20, 3


def triggers(adapter: Adapter) -> list[str]:
    """The words, each once: those that the header or the card says, else the commonest of its captions."""
    said = [adapter.metadata[key] for key in SAID if adapter.metadata.get(key)]
    found = dict.fromkeys(word.strip() for word in [*said, *_card(adapter)] if word.strip())
    return list(found) or list(_commonest(adapter.metadata.get(TAGS, "")))


def _card(adapter: Adapter) -> Iterator[str]:
    """What the front matter of the card beside it says."""
    files = adapter.provenance.files
    place = files[0].parent / "README.md" if files else None
    if place is None or not os.path.isfile(place):
        return
    try:
        text = read_text(place, "README.md", LIMIT).decode("utf-8", "replace")
    except ChangedError:
        raise
    except LoramergeError:  # a card is no part of an adapter
        return
    if text.startswith("---"):
        yield from CARD.findall(text[: text.find("\n---", 3)])


def _commonest(text: str) -> Iterator[str]:
    """The tags that most captions had."""
    if len(text) > LIMIT:
        return
    try:
        folders = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return
    counts: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int) and not isinstance(count, bool):
                counts[str(tag).strip()] += min(count, 2**31)
    yield from (tag for tag, _ in counts.most_common(MOST))
