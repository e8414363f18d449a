"""What the Hub has for a command: its lists told to the user, its downloads under one bar."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from loramerge.hub.progress import watching


@contextmanager
def one_bar() -> Iterator[None]:
    """A bar over the bytes of all downloads of a command: on a terminal only, and only after a second."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # what fails is told once, by our own sentence
    bars: list[Any] = []

    one = threading.Lock()  # files come in threads

    def watch(coming: int, come: int) -> None:
        with one:
            if not bars:
                from tqdm import tqdm

                shown = {"unit": "B", "unit_scale": True, "delay": 1.0, "disable": None, "leave": False}
                bars.append(tqdm(total=0, desc="download", **shown))
            bars[0].total += coming
            bars[0].update(come)

    with watching(watch):
        try:
            yield
        finally:
            for bar in bars:
                bar.close()


def listed(source: str) -> list[str]:
    """The source, or the members of a list on the Hub, told on stderr."""
    from loramerge.cli import show
    from loramerge.hub.names import is_collection

    if not is_collection(source):
        return [source]
    from loramerge.hub.lists import members

    found = members(source)
    for note in found.notes:
        show.note(f"note: {note}")
    return [str(member) for member in found.members]
