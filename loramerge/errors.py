"""What can go wrong, as a tree. Every message is a sentence that names what the user gave, and the next step.

    LoramergeError                 exit 1   anything we can explain
    ├── SourceError                exit 1   a source cannot be read: absent, cut short, malformed
    │     ├── ChangedError                  it changed while it was read
    │     ├── hub.failures.Missing          the Hub has no such repository, or does not show it
    │     └── hub.failures.Unreachable      the Hub does not answer: only the cache can help
    ├── OutputError                exit 1   OUT cannot be written, or would destroy something
    ├── UsageError                 exit 2   an argument is not one of those possible
    ├── IncompatibleError          exit 3   readable, but these adapters cannot be merged as asked
    │     ├── EmptyError                    no tensor is part of a low-rank update
    │     ├── formats.routed.RoutedError    a gate weighs its factors for each input
    │     ├── sources.broken.OneFrame       all sources are FlyLoRA, of which one can be made
    │     └── hub.choice.BundleThere        a name on the Hub is a bundle
    └── VerificationError          exit 4   what was written is not what was decided

An exception outside this tree is our bug (exit 70).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

LONGEST = 200  # characters of a name that someone may have mistyped
_spoken = ["python"]  # the language of the caller; a process has one door
_called: ContextVar[dict[str, str] | None] = ContextVar("_called", default=None)  # setting -> its name here
OPTIONS = {  # settings that the shell knows by another name
    "out": "-o",
    "consumer": "--for",
    "descriptions": "--description",
    "sources": "--source",
    "methods": "--method",
    "rows": "--table",
}


class LoramergeError(Exception):
    """Base of every error that loramerge explains to its user."""

    exit_code = 1


class SourceError(LoramergeError):
    """A source cannot be read: absent, cut short, malformed."""


class ChangedError(SourceError):
    """A file is no longer what was opened: what is known of it is of two states, so nothing is told."""


class OutputError(LoramergeError):
    """The output cannot be written, or writing it would destroy something."""


class UsageError(LoramergeError):
    """What the caller asked for cannot be meant: a wrong value, or two that contradict each other."""

    exit_code = 2


class IncompatibleError(LoramergeError):
    """The adapters can be read, but not merged as asked."""

    exit_code = 3


class EmptyError(IncompatibleError):
    """The files can be read, and no tensor in them is part of a low-rank update."""


class VerificationError(LoramergeError):
    """The output was read back and is not what was decided."""

    exit_code = 4


def alike(name: str, names: Iterable[str], most: int = 1, cutoff: float = 0.6) -> list[str]:
    """Those of these names that a mistyped one may have meant, the likeliest first.

    >>> alike("lgeo", ["lego", "ties"]), alike("ComfyUI", ["comfy", "comfyui"])
    (['lego'], ['comfyui'])
    """
    from difflib import get_close_matches  # for those who mistype

    if len(name) > LONGEST:  # it was not mistyped, and to compare it takes long
        return []
    listed = list(names)
    same = [each for each in listed if each.lower() == name.lower()]
    return same[:most] or get_close_matches(name, listed, most, cutoff)


def printable(text: object, limit: int = 200) -> str:
    """Text from a file, made safe for a terminal: control characters escaped, length bounded.

    >>> printable("layer\\x1b[31m.q_proj")
    'layer\\\\x1b[31m.q_proj'
    """
    safe = str(text)[: limit + 1]
    if not safe.isprintable():
        safe = "".join(c if c.isprintable() else repr(c)[1:-1] for c in safe)
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def word(text: object, limit: int = 1000) -> str:
    r"""Text as one word of a command for bash or zsh, which is shown to be pasted and harms no terminal.

    >>> print(word("a; rm b"), word("it's\x1b[31m"), word("\udcff"))
    'a; rm b' $'it\'s\x1b[31m' $'\xff'
    """
    import shlex

    whole = str(text)
    whole = whole if len(whole) <= limit else f"{whole[: limit - 1]}…"
    return shlex.quote(whole) if whole.isprintable() else f"$'{''.join(map(_typed, whole))}'"


def _typed(char: str) -> str:
    """A character between `$'` and `'`."""
    code = ord(char)
    if char.isprintable():
        return f"\\{char}" if char in "\\'" else char
    if 0xDC80 <= code <= 0xDCFF or code < 0x80:  # a byte of a name that is no UTF-8; a control character
        return f"\\x{code & 0xFF:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def say(setting: str, value: Any = None) -> str:
    """A setting as the caller writes it: in Python, or inside `speaking("shell")` on the command line.

    >>> say("dtype", "float32"), say("overwrite", True), say("out")
    ("dtype='float32'", 'overwrite=True', 'out=')
    >>> with speaking("shell"):
    ...     say("dtype", "float32"), say("overwrite", True), say("out")
    ('--dtype float32', '--overwrite', '-o')
    """
    setting = (_called.get() or {}).get(setting, setting)
    if _spoken[-1] == "python":
        return f"{setting}={'' if value is None else repr(value)}"
    option = OPTIONS.get(setting) or f"--{setting.replace('_', '-')}"
    if isinstance(value, Mapping):
        return " ".join(
            f"{option} {word(name)}={each if each == '…' else word(each)}" for name, each in value.items()
        )
    return option if value is None or value is True else f"{option} {word(value)}"


def spoken() -> str:
    """The language of the caller: ``python`` or ``shell``."""
    return _spoken[-1]


@contextmanager
def calling(**names: str) -> Iterator[None]:
    """Call settings so while the block runs, as `convert` calls `format` `to`.

    >>> with calling(format="to"):
    ...     say("format", "comfy")
    "to='comfy'"
    """
    before = _called.set(names)
    try:
        yield
    finally:
        _called.reset(before)


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """Say settings in this language while the block runs; every thread does."""
    _spoken.append(language)
    try:
        yield
    finally:
        _spoken.pop()
