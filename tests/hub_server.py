"""Server process of a small model hub on loopback, for the real client; it counts what is downloaded."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

COMMIT = "X-Repo-Commit"
"""Folders of the hub: `{owner}/{name}/{commit}/` with files, and `{owner}/{name}/refs.json` {"main": commit}."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path
    log: Path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch("/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            self._describe(*found.groups())
        elif found := re.fullmatch("/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._send_file(*found.groups())
        else:
            self._refuse("EntryNotFound")

    def _commit(self, model: str, revision: str) -> str | None:
        """Commit of a revision; None after an answer that says what is wrong."""
        if not (self.root / model).is_dir():
            self._refuse("RepoNotFound")
            return None
        if (self.root / model / "gated").exists():
            self._refuse("GatedRepo", 403)
            return None
        refs = json.loads((self.root / model / "refs.json").read_text())
        commit = refs.get(revision, revision)
        if not (self.root / model / commit).is_dir():
            self._refuse("RevisionNotFound")
            return None
        return str(commit)

    def _describe(self, model: str, kind: str, revision: str) -> None:
        commit = self._commit(model, revision)
        if commit is None:
            return
        folder = self.root / model / commit
        files = sorted(one for one in folder.rglob("*") if one.is_file())
        names = [one.relative_to(folder).as_posix() for one in files]
        if kind == "tree":
            oids = [hashlib.sha1(one.read_bytes()).hexdigest() for one in files]
            entries = zip(names, files, oids, strict=True)
            answer: object = [
                {"type": "file", "path": name, "size": one.stat().st_size, "oid": oid} for name, one, oid in entries
            ]
        else:
            card = (folder / "README.md").read_text().split("---")[1]
            siblings = [{"rfilename": name} for name in names]
            model_type = json.loads((folder / "config.json").read_text())["model_type"]
            answer = {
                "id": model,
                "sha": commit,
                "siblings": siblings,
                "tags": [],
                "cardData": yaml.safe_load(card),
                "config": {"model_type": model_type},
            }
        self._send(json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send_file(self, model: str, revision: str, name: str) -> None:
        commit = self._commit(model, revision)
        if commit is None:
            return
        file = self.root / model / commit / name
        if not file.is_file():
            self._refuse("EntryNotFound")
            return
        data = file.read_bytes()
        if self.command == "GET":
            with self.log.open("a") as log:
                log.write(f"{model}/{commit}/{name}\n")
        self._send(data, {COMMIT: commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    def _send(self, data: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, code: str, status: int = 404) -> None:
        self._send(b"{}", {"X-Error-Code": code, "X-Error-Message": code}, status)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    Handler.root, Handler.log = Path(sys.argv[1]), Path(sys.argv[2])
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[3])), Handler)
    server.serve_forever()
