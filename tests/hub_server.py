"""Hub for the real client: a server in this process, with repositories in memory.

It speaks what fetching models and publishing need of the Hub's API, logs all requests, keeps all that it was sent, and
fails on demand.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

WRITER, READER, STRANGER = "hf_writer0000000000000000", "hf_reader0000000000000000", "hf_stranger00000000000000"
TOKENS = {WRITER: ("lab", "write"), READER: ("lab", "read"), STRANGER: ("guest", "write")}
LFS_SUFFIXES = (".parquet", ".safetensors", ".bin")
ATTRIBUTES = b"*.parquet filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass(frozen=True)
class Blob:
    """File of a commit."""

    data: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """Git's id of the file, or of its pointer."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        data = pointer.encode() if self.is_lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def described(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "file", "path": path, "size": len(self.data), "oid": self.oid}
        return found | (
            {"lfs": {"oid": self.sha256, "size": len(self.data), "pointerSize": 130}} if self.is_lfs else {}
        )


@dataclass
class Commit:
    """Commit of a repository."""

    oid: str
    title: str
    files: Mapping[str, Blob]
    parent: str = ""


@dataclass
class Repository:
    """Repository of a hub: commits, oldest first, and tags. `main`: commit of the branch, by default the last."""

    is_private: bool = False
    is_gated: bool = False
    main: str = ""
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        return next((commit for commit in self.commits if commit.oid == self.main), self.commits[-1])

    def at(self, revision: str) -> Commit | None:
        """Commit of a branch, tag or id."""
        wanted = self.head.oid if revision == "main" else self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit.oid == wanted), None)

    def add_folder(self, oid: str, folder: Path) -> None:
        """Adds a commit of a given id that holds a folder's files."""
        files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        blobs = {path: Blob(data, path.endswith(LFS_SUFFIXES)) for path, data in files.items()}
        self.commits.append(Commit(oid, "given", blobs))

    def history(self, commit: Commit | None) -> list[Commit]:
        """A commit and those before it, the newest first."""
        found = []
        while commit is not None:
            found.append(commit)
            commit = self.at(commit.parent) if commit.parent else None
        return found

    def prune(self) -> None:
        """Drops the commits that neither the branch nor a tag leads to."""
        reached = {one.oid for name in ("main", *self.tags) for one in self.history(self.at(name))}
        self.commits[:] = [commit for commit in self.commits if commit.oid in reached]

    def commit(self, title: str, files: Mapping[str, Blob], *, is_root: bool = False) -> Commit:
        parent = self.commits[-1].oid if self.commits and not is_root else ""
        named = json.dumps([parent, title, sorted((path, blob.oid) for path, blob in files.items())])
        self.commits.append(Commit(hashlib.sha1(named.encode()).hexdigest(), title, files, parent))
        return self.head


@dataclass
class Fault:
    """Failure of the next requests of a kind: a status, or the connection's end before or after the work."""

    kind: str
    times: int
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    is_after: bool = False


class Hub:
    """Server of a hub on loopback.

    Attributes:
        repositories: by kind and id, like ("dataset", "lab/sounds").
        requests: kind and bytes of the body of each request.
        downloads: `id/commit/path` of each file that was sent.
        sent: all bodies of uploads and commits.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, int]] = []
        self.downloads: list[str] = []
        self.sent: list[bytes] = []
        self.faults: list[Fault] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def forget(self) -> None:
        """Starts anew, without repositories."""
        for held in (self.repositories, self.objects, self.requests, self.downloads, self.sent, self.faults):
            held.clear()

    def fail_next(self, kind: str, *, status: int = 0, times: int = 1, after: bool = False, **headers: str) -> None:
        """Lets the next requests of a kind fail; without a status the connection ends, `after` the work is done."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(kind, times, status, named, after))

    def bytes_of(self, *kinds: str) -> int:
        """Bytes that requests of these kinds brought."""
        return sum(size for kind, size in self.requests if kind in kinds)

    def environment(self, home: str, token: str | None = WRITER) -> dict[str, str]:
        """Environment of a process of the real client."""
        found = {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": home, "HF_HUB_DISABLE_TELEMETRY": "1"}
        return found | ({} if token is None else {"HF_TOKEN": token})


_REPO = r"(?P<kind>model|dataset)s/(?P<id>[^/]+/[^/]+)"
_ROUTES = {
    "whoami": ("GET", r"/api/whoami-v2"),
    "create": ("POST", r"/api/repos/create"),
    "validate": ("POST", r"/api/validate-yaml"),
    "settings": ("PUT", rf"/api/{_REPO}/settings"),
    "tree": ("GET", rf"/api/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?"),
    "paths-info": ("POST", rf"/api/{_REPO}/paths-info/(?P<revision>[^/]+)"),
    "preupload": ("POST", rf"/api/{_REPO}/preupload/(?P<revision>[^/]+)"),
    "commit": ("POST", rf"/api/{_REPO}/commit/(?P<revision>[^/]+)"),
    "refs": ("GET", rf"/api/{_REPO}/refs"),
    "tag": ("POST", rf"/api/{_REPO}/tag/(?P<revision>[^/]+)"),
    "untag": ("DELETE", rf"/api/{_REPO}/tag/(?P<tag>[^/]+)"),
    "squash": ("POST", rf"/api/{_REPO}/super-squash/(?P<revision>[^/]+)"),
    "info": ("GET", rf"/api/{_REPO}(?:/revision/(?P<revision>[^/]+))?"),
    "commits": ("GET", rf"/api/{_REPO}/commits/(?P<revision>[^/]+)"),
    "stored": ("GET", rf"/api/{_REPO}/lfs-files"),
    "unstore": ("POST", rf"/api/{_REPO}/lfs-files/batch"),
    "batch": ("POST", r"/(?P<prefix>datasets/)?(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch"),
    "upload": ("PUT", r"/objects/(?P<oid>[0-9a-f]{64})"),
    "download": ("GET", r"/(?P<prefix>datasets/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        path, method = unquote(parts.path), "GET" if self.command == "HEAD" else self.command
        body = self._body()
        routes = (
            (kind, re.fullmatch(pattern, path)) for kind, (wanted, pattern) in _ROUTES.items() if method == wanted
        )
        kind, found = next(((kind, match) for kind, match in routes if match), ("", None))
        if found is None:
            self._refuse(404, "EntryNotFound", f"no such address: {method} {path}")
            return
        self.hub.requests.append((kind, len(body)))
        fault = next((one for one in self.hub.faults if one.kind == kind and one.times), None)
        if fault is not None:
            fault.times -= 1
            if not fault.is_after:
                self._fail(fault)
                return
        named = {name: value or "" for name, value in found.groupdict().items()}
        named["kind"] = named.get("kind") or ("dataset" if named.get("prefix") else "model")
        if kind in ("upload", "commit"):
            self.hub.sent.append(body)
        status, answer, headers = self._answer(kind, named, body, parse_qs(parts.query))
        if fault is not None:
            self._fail(fault)
            return
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self._send(status, data, headers)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, kind: str, named: Mapping[str, str], body: bytes, query: Mapping[str, list[str]]) -> Any:
        """Status, answer and headers of a request."""
        if kind == "upload":
            return self._upload(named["oid"], body)
        who = TOKENS.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))
        if who is None and (self.headers.get("Authorization") or kind == "whoami"):
            return self._problem(401, "", "Invalid username or password.")
        if kind == "whoami":
            assert who is not None
            token = {"displayName": "token", "role": who[1]}
            return 200, {"name": who[0], "type": "user", "orgs": [], "auth": {"accessToken": token}}, {}
        if kind == "validate":
            return 200, {"errors": [], "warnings": []}, {}
        if kind == "create":
            return self._create(json.loads(body), who)
        key = (named["kind"], named["id"])
        repository = self.hub.repositories.get(key)
        may_write = who == (named["id"].split("/")[0], "write")
        if repository is None or (repository.is_private and (who is None or who[0] != named["id"].split("/")[0])):
            return self._problem(404 if who else 401, "RepoNotFound", "Repository not found")
        if repository.is_gated:
            return self._problem(403, "GatedRepo", "Access to this repository is restricted")
        writes = ("settings", "preupload", "batch", "commit", "tag", "untag", "squash", "stored", "unstore")
        if kind in writes and not may_write:
            return self._problem(403, "", f"Forbidden: you don't have write access to {named['id']}")
        return getattr(self, "_" + kind.replace("-", "_"))(key, repository, named, body, query)

    def _create(self, asked: Mapping[str, Any], who: tuple[str, str] | None) -> Any:
        owner = asked.get("organization") or (who[0] if who else "")
        if who != (owner, "write"):
            return self._problem(403, "", f"You don't have the rights to create a repository under {owner}")
        if not re.fullmatch(r"[\w.-]{1,96}", asked["name"]) or asked["name"].startswith("-"):
            return self._problem(400, "", "Invalid repository name")
        key = (asked.get("type") or "model", f"{owner}/{asked['name']}")
        if key in self.hub.repositories:
            return self._problem(409, "", "You already created this repository")
        made = Repository(bool(asked.get("private")) or asked.get("visibility") == "private")
        made.commit("initial commit", {".gitattributes": Blob(ATTRIBUTES, is_lfs=False)})
        self.hub.repositories[key] = made
        prefix = "datasets/" if key[0] == "dataset" else ""
        return 200, {"url": f"{self.hub.url}/{prefix}{key[1]}", "name": key[1]}, {}

    def _info(self, key: tuple[str, str], repository: Repository, named: Any, body: bytes, query: Any) -> Any:
        commit = repository.at(named["revision"] or "main")
        if commit is None:
            return self._problem(404, "RevisionNotFound", "Invalid rev id")
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        found = {"id": key[1], "sha": commit.oid, "private": repository.is_private, "tags": [], "siblings": siblings}
        if "README.md" in commit.files:
            found["cardData"] = yaml.safe_load(commit.files["README.md"].data.decode().split("---")[1])
        if "config.json" in commit.files:
            found["config"] = {"model_type": json.loads(commit.files["config.json"].data).get("model_type")}
        return 200, found | {"downloads": 0, "likes": 0}, {}

    def _settings(self, key: Any, repository: Repository, named: Any, body: bytes, query: Any) -> Any:
        asked = json.loads(body)
        repository.is_private = asked.get("visibility") == "private" or bool(asked.get("private"))
        return 200, {"private": repository.is_private}, {}

    def _tree(self, key: Any, repository: Repository, named: Any, body: bytes, query: Mapping[str, list[str]]) -> Any:
        commit = repository.at(named["revision"])
        if commit is None:
            return self._problem(404, "RevisionNotFound", "Invalid rev id")
        start = f"{named['path'].strip('/')}/" if named["path"] else ""
        files = {path: blob for path, blob in commit.files.items() if path.startswith(start)}
        if start and not files:
            return self._problem(404, "EntryNotFound", f"{start} does not exist")
        folders = {start + "/".join(path[len(start) :].split("/")[:depth]) for path in files
                   for depth in range(1, path[len(start) :].count("/") + 1)}  # fmt: skip
        if query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            files = {path: blob for path, blob in files.items() if "/" not in path[len(start) :]}
            folders = {folder for folder in folders if "/" not in folder[len(start) :]}
        listed = [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)]
        return 200, [*listed, *(blob.described(path) for path, blob in sorted(files.items()))], {}

    def _paths_info(self, key: Any, repository: Repository, named: Any, body: bytes, query: Any) -> Any:
        commit = repository.at(named["revision"])
        if commit is None:
            return self._problem(404, "RevisionNotFound", "Invalid rev id")
        asked = parse_qs(body.decode()) if not body.startswith(b"{") else json.loads(body)
        found = []
        for path in asked.get("paths", []):
            if path in commit.files:
                found.append(commit.files[path].described(path))
            elif any(one.startswith(f"{path}/") for one in commit.files):
                found.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        return 200, found, {}

    def _preupload(self, key: Any, repository: Repository, named: Any, body: bytes, query: Any) -> Any:
        there = repository.head.files
        files = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith(LFS_SUFFIXES) or one["size"] > 10**7 else "regular",
                "shouldIgnore": False,
                **({"oid": there[one["path"]].oid} if one["path"] in there else {}),
            }
            for one in json.loads(body)["files"]
        ]
        return 200, {"files": files}, {}

    def _batch(self, key: Any, repository: Repository, named: Any, body: bytes, query: Any) -> Any:
        objects = []
        for one in json.loads(body)["objects"]:
            actions = {"upload": {"href": f"{self.hub.url}/objects/{one['oid']}"}}
            objects.append({**one, **({} if one["oid"] in self.hub.objects else {"actions": actions})})
        return 200, {"transfer": "basic", "objects": objects}, {}

    def _upload(self, oid: str, body: bytes) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._problem(400, "", "other bytes than were announced")
        self.hub.objects[oid] = body
        return 200, {}, {}

    def _commit(self, key: tuple[str, str], repository: Repository, named: Any, body: bytes, query: Any) -> Any:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit", repository.head.oid) != repository.head.oid:
            return self._problem(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(repository.head.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), is_lfs=False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self._problem(
                        400, "", f"LFS pointer of {value['path']} points to a file that does not exist"
                    )
                files[value["path"]] = Blob(self.hub.objects[value["oid"]], is_lfs=True)
            elif line["key"] == "deletedFile" and files.pop(value["path"], None) is None:
                return self._problem(404, "EntryNotFound", "A file with this name doesn't exist")
        made = repository.commit(header["summary"], files)
        url = f"{self.hub.url}/{'datasets/' if key[0] == 'dataset' else ''}{key[1]}/commit/{made.oid}"
        return 200, {"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""}, {}

    def _refs(self, key: Any, repository: Repository, named: Any, body: bytes, query: Any) -> Any:
        branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repository.head.oid}]
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": oid} for n, oid in repository.tags.items()]
        return 200, {"branches": branches, "tags": tags, "converts": []}, {}

    def _tag(self, key: Any, repository: Repository, named: Any, body: bytes, query: Any) -> Any:
        name, commit = json.loads(body)["tag"], repository.at(named["revision"])
        if name in repository.tags:
            return self._problem(409, "", "Tag reference exists already")
        if commit is None:
            return self._problem(404, "RevisionNotFound", "Invalid rev id")
        repository.tags[name] = commit.oid
        return 201, {}, {}

    def _untag(self, key: Any, repository: Repository, named: Any, body: bytes, query: Any) -> Any:
        if repository.tags.pop(named["tag"], None) is None:
            return self._problem(404, "RevisionNotFound", "no such tag")
        repository.prune()
        return 204, b"", {}

    def _squash(self, key: Any, repository: Repository, named: Any, body: bytes, query: Any) -> Any:
        files = repository.head.files
        repository.commit(json.loads(body)["message"], files, is_root=True)
        repository.prune()
        return 200, {}, {}

    def _commits(self, key: Any, repository: Repository, named: Any, body: bytes, query: Any) -> Any:
        line = repository.history(repository.at(named["revision"]))
        facts = {"authors": [{"user": "lab"}], "date": "2026-01-01T00:00:00.000Z", "message": ""}
        return 200, [{"id": commit.oid, "title": commit.title, **facts} for commit in line], {}

    def _stored(self, key: Any, repository: Repository, named: Any, body: bytes, query: Any) -> Any:
        times = {"ref": "main", "pushedAt": "2026-01-01T00:00:00.000Z"}
        found = [{"fileOid": oid, "oid": oid, "size": len(data)} for oid, data in self.hub.objects.items()]
        return 200, [{**one, "filename": "", **times} for one in found], {}

    def _unstore(self, key: Any, repository: Repository, named: Any, body: bytes, query: Any) -> Any:
        for oid in json.loads(body)["deletions"]["sha"]:
            del self.hub.objects[oid]
        return 200, {}, {}

    def _download(self, key: Any, repository: Repository, named: Any, body: bytes, query: Any) -> Any:
        commit = repository.at(named["revision"])
        if commit is None:
            return self._problem(404, "RevisionNotFound", "Invalid rev id")
        blob = commit.files.get(named["path"])
        if blob is None:
            return self._problem(404, "EntryNotFound", "Entry not found")
        if self.command == "GET":
            self.hub.downloads.append(f"{key[1]}/{commit.oid}/{named['path']}")
        tag = {"ETag": f'"{blob.sha256 if blob.is_lfs else blob.oid}"', "X-Repo-Commit": commit.oid}
        start, end = 0, len(blob.data)
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(found[1]), min(end, int(found[2]) + 1 if found[2] else end)
            tag["Content-Range"] = f"bytes {start}-{end - 1}/{len(blob.data)}"
            return 206, blob.data[start:end], tag
        return 200, blob.data, tag | {"Accept-Ranges": "bytes"}

    def _problem(self, status: int, code: str, message: str) -> Any:
        headers = {"X-Error-Code": code} if code else {}
        return status, {"error": message}, headers | {"X-Error-Message": message}

    def _refuse(self, status: int, code: str, message: str) -> None:
        _, answer, headers = self._problem(status, code, message)
        self._send(status, json.dumps(answer).encode(), headers)

    def _fail(self, fault: Fault) -> None:
        if fault.status:
            self._send(fault.status, b'{"error": "on demand"}', dict(fault.headers))
            return
        self.close_connection = True
        self.connection.close()

    def _send(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and status != 204:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass
