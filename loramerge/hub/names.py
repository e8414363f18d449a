"""How things on the Hub are named: `org/name`, `org/name@revision`, `hf://org/name@revision/path`."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.late import late
from loramerge.errors import SourceError, UsageError, printable

SCHEME = late(r"hf:/{1,2}")  # a Path keeps one slash only
FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl")
WORD = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
REPOSITORY = late(rf"(?!.*(?:--|\.\.)){WORD}/{WORD}")
REVISION = late(r"(?!.*(?:\.\.|//))[A-Za-z0-9_](?:[A-Za-z0-9._/+-]*[A-Za-z0-9_+-])?")
COMMIT = late(r"[0-9a-f]{40}")
FULL = late(
    r"(?:models/)?(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<path>.*))?"
)
HOW = "hf://org/name@revision/subfolder, of which @revision and /subfolder may be left out"


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository, maybe at a revision, and maybe a folder or a file in it.

    >>> print(HubName("org/name", "v1", "sub"))
    hf://org/name@v1/sub
    """

    repo: str
    revision: str | None = None
    path: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision.replace('/', '%2F')}" if self.revision else ""
        return f"hf://{self.repo}{revision}{'/' if self.path else ''}{self.path}"

    @property
    def place(self) -> str:
        """Repository and path, without the revision: what a record keeps beside the commit."""
        return f"{self.repo}/{self.path}" if self.path else self.repo

    @property
    def shown(self) -> str:
        """How messages and reports call it: a commit by its first digits."""
        short = (self.revision or "")[: 8 if self.is_pinned else None].replace("/", "-")
        return f"{self.repo}{f'@{short}' if short else ''}{'/' if self.path else ''}{self.path}"

    @property
    def is_file(self) -> bool:
        return self.path.endswith(FILES)

    @property
    def is_pinned(self) -> bool:
        """Whether it names one commit, which nobody can change."""
        return bool(self.revision and COMMIT.fullmatch(self.revision))


def inside(name: HubName, path: str) -> HubName:
    """What lies at a path below a name.

    >>> print(inside(HubName("org/name", "v1", "sub"), "task_0"))
    hf://org/name@v1/sub/task_0
    """
    return replace(name, path=f"{name.path}/{path}" if name.path else path)


def is_hub(source: object) -> bool:
    """Whether a source can only be meant for the Hub: it begins with hf://."""
    return isinstance(source, str | Path) and bool(SCHEME.match(str(source)))


def hub_name(source: object) -> HubName | None:
    """What a source names on the Hub; None if it names something here. An existing local path wins.

    Raises:
        SourceError: it begins with hf://, and goes on as no name can.

    >>> hub_name("org/name@v1"), hub_name("fixtures/a.safetensors"), hub_name("org/a.safetensors")
    (HubName(repo='org/name', revision='v1', path=''), None, None)
    """
    if isinstance(source, Adapter):
        return None
    if not isinstance(source, str | Path):
        shown = printable(repr(source), 60)
        raise UsageError(f"{shown} is not an adapter: give a path, a name on the Hub, or an Adapter.")
    text = str(source)
    if is_hub(text):
        return parse(text)
    return None if os.path.lexists(text) else plain(text)


def plain(text: str) -> HubName | None:
    """`org/name` or `org/name@revision`; None for anything else, such as the name of a file."""
    repo, at, revision = text.partition("@")
    if not REPOSITORY.fullmatch(repo) or repo.endswith(FILES) or text.endswith("@"):
        return None
    if at and not REVISION.fullmatch(revision):
        return None
    return HubName(repo, revision or None)


def parse(text: str) -> HubName:
    """The name in `hf://org/name@revision/path`.

    Raises:
        SourceError: it is none.

    >>> parse("hf://org/name@refs/pr/1/sub/file.safetensors")
    HubName(repo='org/name', revision='refs/pr/1', path='sub/file.safetensors')
    """
    if is_collection(text):
        raise SourceError(f"{printable(text)} is a list of adapters: name one of them.")
    match = FULL.fullmatch(SCHEME.sub("", text, count=1).rstrip("/"))
    revision = unquote(match["revision"]) if match and match["revision"] else None
    path = (match["path"] or "") if match else ""
    sound = match and REPOSITORY.fullmatch(match["repo"]) and (not revision or REVISION.fullmatch(revision))
    if not match or not sound or not _inside(path):
        raise SourceError(f"{printable(text)} is not a name on the Hub: write {HOW}.")
    return HubName(match["repo"], revision, path)


def pinned(source: str, revision: str) -> str:
    """A source with the revision that is given beside it; the source itself if it is no name without one.

    >>> pinned("org/name", "v1"), pinned("hf://org/name/sub", "v1"), pinned("fixtures/a.safetensors", "v1")
    ('hf://org/name@v1', 'hf://org/name@v1/sub', 'fixtures/a.safetensors')
    """
    if is_hub(source) and is_collection(source):
        return source
    name = hub_name(source)
    return source if name is None or name.revision else str(replace(name, revision=revision))


def is_collection(text: str) -> bool:
    """`hf://collections/owner/slug`, or `hf://?key=value`, which asks the Hub for a list."""
    rest = SCHEME.sub("", text, count=1)
    return is_hub(text) and (rest.startswith(("collections/", "?")))


def _inside(path: str) -> bool:
    """Whether a path stays in its repository."""
    parts = path.split("/") if path else []
    return path.isprintable() and "\\" not in path and not any(part in ("", ".", "..") for part in parts)
