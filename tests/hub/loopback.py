"""A Hub of our own on 127.0.0.1, as far as its real client asks: repositories, commits, LFS, lists, faults.

Importing it reserves the port and points the client there, before `huggingface_hub` reads its environment.
Nobody answers on that port until a test asks for the fixture `hub`, and nothing reaches the network.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LISTENER = socket.socket()
LISTENER.bind(("127.0.0.1", 0))
PORT = LISTENER.getsockname()[1]
ENDPOINT = f"http://127.0.0.1:{PORT}"
ELSEWHERE = f"http://localhost:{PORT}"  # another host to a client: where LFS keeps its bytes
HOME = tempfile.mkdtemp(prefix="loramerge-tests-hub-")
TOKEN = "hf_" + "secretsecret" * 2

atexit.register(LISTENER.close)
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_TOKEN_PATH", "TRANSFORMERS_OFFLINE"):
    os.environ.pop(name, None)
os.environ |= {
    "HF_ENDPOINT": ENDPOINT,
    "HF_HOME": HOME,
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}

Files = dict[str, bytes]


@dataclass
class Repo:
    """A repository: every commit holds all its files."""

    name: str
    private: bool = False
    gated: bool = False
    tags: list[str] = field(default_factory=list)
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Files, branch: str = "main") -> str:
        """The files as they are after it; its 40 digits."""
        whole = {**self.files(branch), **files}
        count = f"{self.name} {len(self.commits)}"
        sha = hashlib.sha1(count.encode()).hexdigest()
        self.commits[sha] = whole
        self.branches[branch] = sha
        return sha

    def sha(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)

    def files(self, revision: str = "main") -> Files:
        return self.commits.get(self.sha(revision) or "", {})


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    host: str
    token: str | None
    span: str | None
    sent: int = 0


@dataclass
class Hub:
    """What the server knows and does."""

    repos: dict[str, Repo] = field(default_factory=dict)
    collections: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=lambda: {TOKEN: "me"})
    asked: list[Asked] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    large: int = 1000  # bytes from which a file goes through LFS
    xet: str | None = None  # folder of a local CAS
    xet_names: dict[str, str] = field(default_factory=dict)  # SHA-256 -> what xet calls the file
    broken: int = 0  # so many of the next downloads from LFS break off half-way
    status: dict[str, int] = field(default_factory=dict)  # path -> HTTP status to fail with
    ranges: bool = True
    before_commit: Callable[[Repo], Any] | None = None
    card_warning: str | None = None
    card_error: str | None = None

    def add(self, name: str, files: Files, **more: Any) -> str:
        """A repository, or one more commit of it; the commit."""
        repo = self.repos.setdefault(name, Repo(name, **more))
        return repo.commit(files)

    def got(self, method: str, part: str) -> list[Asked]:
        return [each for each in self.asked if each.method == method and part in each.path]


def files_of(folder: Path) -> Files:
    """A folder as a repository keeps it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
