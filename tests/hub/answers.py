"""What the Hub of the tests answers to each request of its client."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.loopback import ELSEWHERE, ENDPOINT, LISTENER, PORT, Asked, Files, Hub, Repo

XET = b"xet:"
MATTER = re.compile(rb"---\n(.*?)\n---", re.DOTALL)


class Failure(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str = "", message: str = "no") -> None:
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: the second would wait 40 ms for an answer
    hub: Hub

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = (
            self._chunked()
            if "chunked" in self.headers.get("Transfer-Encoding", "")
            else self.rfile.read(length)
        )
        bearer = self.headers.get("Authorization")
        self.token = bearer.removeprefix("Bearer ") if bearer else None
        host = self.headers.get("Host", "").partition(":")[0]
        self.hub.asked.append(
            Asked(self.command, self.path, host, self.token, self.headers.get("Range"), len(body))
        )
        try:
            self._answer(body)
        except Failure as failure:
            headers = {"X-Error-Code": failure.code} if failure.code else {}
            self._json(
                {"error": failure.message}, failure.status, {**headers, "X-Error-Message": failure.message}
            )
        except (BrokenPipeError, ConnectionResetError):  # a client that only wanted the head
            self.close_connection = True

    def _chunked(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, body: bytes) -> None:
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        raw = [unquote(part) for part in url.path.strip("/").split("/")]
        for part, status in self.hub.status.items():
            if part in path:
                raise Failure(status, message=f"status {status}, said to {self.token}")
        if self.token is not None and self.token not in self.hub.users:
            raise Failure(401, message="Invalid credentials in Authorization header")
        if raw[0] == "lfs":
            return self._lfs_object(raw[1], body)
        if ".git/info/lfs" in path:
            return self._lfs_batch(json.loads(body))
        if raw[:2] == ["api", "models"]:
            return self._model(raw[2:], body)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._validate()
        if path == "/api/whoami-v2":
            return self._json({"type": "user", "name": self._user(), "orgs": [], "auth": {}})
        if raw[:2] == ["api", "collections"]:
            return self._collection("/".join(raw[2:]))
        if len(raw) > 4 and raw[2] == "resolve":
            return self._resolve(self._repo("/".join(raw[:2])), raw[3], "/".join(raw[4:]))
        raise Failure(404)

    def _user(self) -> str:
        if self.token is None:
            raise Failure(401, message="Invalid username or password.")
        return self.hub.users[self.token]

    def _repo(self, name: str) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.token is None):
            raise Failure(404 if self.token else 401, "RepoNotFound", "Repository not found")
        return repo

    def _may_write(self, name: str) -> None:
        if name.partition("/")[0] not in (self._user(), "team"):
            raise Failure(403, message="You don't have the rights to write there")

    def _model(self, parts: list[str], body: bytes) -> None:
        if not parts:
            return self._models()
        repo, action = self._repo("/".join(parts[:2])), parts[2:]
        if not action or action[0] == "revision":
            return self._info(repo, action[1] if action else "main")
        if action[0] == "tree":
            return self._tree(repo, action[1])
        if action[0] in ("xet-write-token", "xet-read-token") and self.hub.xet:
            return self._xet_token()
        self._may_write(repo.name)
        if action[0] == "preupload":
            return self._preupload(repo, action[1], json.loads(body))
        if action[0] == "commit":
            return self._commit(repo, action[1], body)
        if action[0] == "branch":
            if action[1] in repo.branches:
                raise Failure(409)
            repo.branches[action[1]] = repo.branches["main"]
            return self._json({})
        raise Failure(404)

    def _models(self) -> None:
        tags = {tag for given in self.query.get("filter", []) for tag in given.split(",")}
        author, search = self.query.get("author", [""])[0], self.query.get("search", [""])[0]
        fitting = [
            {"_id": repo.name, "id": repo.name, "private": False, "tags": repo.tags, "downloads": 1}
            for repo in self.hub.repos.values()
            if tags <= set(repo.tags) and repo.name.startswith(author) and search in repo.name
        ]
        self._json(fitting[: int(self.query.get("limit", ["1000"])[0])])

    def _at(self, repo: Repo, revision: str) -> str:
        sha = repo.sha(revision)
        if sha is None:
            raise Failure(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def _info(self, repo: Repo, revision: str) -> None:
        sha = self._at(repo, revision)
        siblings = [{"rfilename": name} for name in sorted(repo.commits[sha])]
        card = self._card(repo.commits[sha].get("README.md", b""))
        self._json(
            {
                "_id": "x",
                "id": repo.name,
                "modelId": repo.name,
                "sha": sha,
                "private": repo.private,
                "gated": "manual" if repo.gated else False,
                "tags": repo.tags,
                "downloads": 0,
                "likes": 0,
                "siblings": siblings,
                "cardData": card,
                "pipeline_tag": card.get("pipeline_tag"),
            }
        )

    def _card(self, text: bytes) -> dict[str, Any]:
        import yaml

        matter = MATTER.match(text)
        found = yaml.safe_load(matter[1]) if matter else {}
        return found if isinstance(found, dict) else {}

    def _tree(self, repo: Repo, revision: str) -> None:
        files = repo.commits[self._at(repo, revision)]
        self._json([{"type": "file", "path": p, "size": len(b), "oid": _git(b)} for p, b in files.items()])

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or self._user()}/{asked['name']}"
        self._may_write(name)
        if name in self.hub.repos:
            return self._json({"url": f"{ENDPOINT}/{name}"}, 409)
        private = asked.get("private") is True or asked.get("visibility") == "private"
        self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        return self._json({"url": f"{ENDPOINT}/{name}"})

    def _validate(self) -> None:
        if self.hub.card_error:
            return self._json({"errors": [{"message": self.hub.card_error}], "warnings": []}, 400)
        warning = [{"message": self.hub.card_warning}] if self.hub.card_warning else []
        return self._json({"errors": [], "warnings": warning})

    def _preupload(self, repo: Repo, revision: str, asked: dict[str, Any]) -> None:
        have = repo.commits[self._at(repo, revision)]
        rows = []
        for file in asked["files"]:
            mode = "lfs" if file["size"] >= self.hub.large else "regular"
            row = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if file["path"] in have:
                old = have[file["path"]]
                row["oid"] = hashlib.sha256(old).hexdigest() if mode == "lfs" else _git(old)
            rows.append(row)
        self._json({"files": rows})

    def _lfs_batch(self, asked: dict[str, Any]) -> None:
        rows = []
        for each in asked["objects"]:
            known = each["oid"] in self.hub.uploads
            actions = {} if known else {"upload": {"href": f"{ELSEWHERE}/lfs/{each['oid']}"}}
            rows.append({**each, **({"actions": actions} if actions else {})})
        self._json({"transfer": "basic", "objects": rows})

    def _lfs_object(self, oid: str, body: bytes) -> None:
        if self.command == "PUT":
            assert hashlib.sha256(body).hexdigest() == oid
            self.hub.uploads[oid] = body
            return self._json({})
        return self._bytes(self.hub.uploads[oid], {"ETag": f'"{oid}"'})

    def _xet_token(self) -> None:
        url = f"local://{self.hub.xet}"
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": "9999999999"}
        self._json({"casUrl": url, "exp": 9999999999, "accessToken": "xet"}, headers=headers)

    def _commit(self, repo: Repo, revision: str, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines() if line]
        head = lines[0]["value"]
        if self.hub.before_commit:
            self.hub.before_commit(repo)
        pull = "create_pr" in self.query
        now = self._at(repo, revision)
        if not pull and head.get("parentCommit") not in (None, now):
            raise Failure(412, message="A commit has happened since. Please refresh and try again.")
        files: Files = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads.get(value["oid"], _in_xet(value))
        branch = f"refs/pr/{sum(b.startswith('refs/pr') for b in repo.branches) + 1}" if pull else revision
        repo.branches.setdefault(branch, now)
        sha = repo.commit(files, branch)
        repo.messages.append(head["summary"])
        url = f"{ENDPOINT}/{repo.name}/discussions/{branch.rpartition('/')[2]}" if pull else None
        self._json(
            {
                "success": True,
                "commitOid": sha,
                "commitUrl": f"{ENDPOINT}/{repo.name}/commit/{sha}",
                "pullRequestUrl": url,
            }
        )

    def _collection(self, slug: str) -> None:
        items = self.hub.collections.get(slug)
        if items is None:
            raise Failure(404)
        rows = [
            {"_id": str(i), "id": name, "type": kind, "position": i} for i, (kind, name) in enumerate(items)
        ]
        head = {"title": slug, "owner": {"name": slug.partition("/")[0]}, "position": 0, "private": False}
        more = {"theme": "blue", "upvotes": 0, "lastUpdated": "2026-01-01T00:00:00.000Z"}
        self._json({"slug": slug, **head, **more, "items": rows})

    def _resolve(self, repo: Repo, revision: str, path: str) -> None:
        if repo.gated:
            raise Failure(403 if self.token else 401, "GatedRepo", "Access to this model is restricted")
        sha = self._at(repo, revision)
        if path not in repo.commits[sha]:
            raise Failure(404, "EntryNotFound", "Entry not found")
        data = repo.commits[sha][path]
        known = {"X-Repo-Commit": sha}
        if data.startswith(XET):
            return self._xet_file(repo, sha, json.loads(data.removeprefix(XET)), known)
        if len(data) < self.hub.large:
            return self._bytes(data, {**known, "ETag": f'"{_git(data)}"'})
        oid = hashlib.sha256(data).hexdigest()
        self.hub.uploads[oid] = data
        linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(data))}
        where = f"{ELSEWHERE}/lfs/{oid}"
        return self._reply(302, b"", {**known, **linked, "Location": where})

    def _xet_file(self, repo: Repo, sha: str, file: dict[str, Any], known: dict[str, str]) -> None:
        """Where the bytes lie: in the store of xet only, under another name than their SHA-256."""
        linked = {"X-Linked-Etag": f'"{file["oid"]}"', "X-Linked-Size": str(file["size"])}
        token = f"{ENDPOINT}/api/models/{repo.name}/xet-read-token/{sha}"
        xet = {"X-Xet-Hash": self.hub.xet_names[file["oid"]], "X-Xet-Refresh-Route": token}
        where = f"{ELSEWHERE}/lfs/{file['oid']}"  # where there is nothing
        self._reply(302, b"", {**known, **linked, **xet, "Location": where})

    def _bytes(self, data: bytes, headers: dict[str, str]) -> None:
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        status = 200
        if span and self.hub.ranges:
            start, stop = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
            headers = {**headers, "Content-Range": f"bytes {start}-{stop}/{len(data)}"}
            data, status = data[start : stop + 1], 206
        if self.command == "GET" and self.hub.broken and self.path.startswith("/lfs/"):
            self.hub.broken -= 1
            self._reply(status, data[: len(data) // 2], headers, claimed=len(data))
            self.wfile.flush()
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self._reply(status, data, headers)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._reply(
            status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})}
        )

    def _reply(self, status: int, data: bytes, headers: dict[str, str], claimed: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if claimed is None else claimed))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _in_xet(file: dict[str, Any]) -> bytes:
    """What stands in a repository for a file whose bytes went to xet."""
    return XET + json.dumps({"oid": file["oid"], "size": file["size"]}).encode()


def _git(data: bytes) -> str:
    """The name that git gives a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", PORT), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = LISTENER
        self.server_activate()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def handle_error(self, *_: Any) -> None: ...


_server: Server | None = None


def start(hub: Hub) -> None:
    """Answer as this Hub from now on."""
    global _server
    Handler.hub = hub
    if _server is None:
        _server = Server()
