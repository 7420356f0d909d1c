"""S3 server behind a proxy that delays requests and counts the bytes that are read, by name."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUCKET = "benchmark"


@dataclass
class Bucket:
    """Bucket at s3://BUCKET. `environment` points S3 clients at the proxy; `read_bytes` counts what GETs return."""

    environment: dict[str, str]
    read_bytes: Counter[str] = field(default_factory=Counter)


@contextmanager
def bucket(request_s: float = 0.0) -> Iterator[Bucket]:
    """Bucket of which each request takes `request_s` longer. In this process's environment there is no delay."""
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    with contextlib.redirect_stdout(sys.stderr):  # moto says where it listens
        server.start()
    _, port = server.get_host_and_port()
    environment = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    made = Bucket(environment)
    handler = type("Handler", (_Proxy,), {"port": port, "request_s": request_s, "bucket": made})
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    os.environ |= environment | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    made.environment = os.environ | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_port}"}
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
    try:
        yield made
    finally:
        proxy.shutdown()
        server.stop()


class _Proxy(BaseHTTPRequestHandler):
    """HTTP proxy that passes requests to an S3 server at `port`."""

    protocol_version = "HTTP/1.1"
    port = 0
    request_s = 0.0
    bucket: Bucket

    def answer(self) -> None:
        body = self._body()
        time.sleep(self.request_s)
        server = http.client.HTTPConnection("127.0.0.1", self.port)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
        server.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
        reply = server.getresponse()
        data = reply.read()
        path = urllib.parse.urlsplit(self.path)
        if self.command == "GET" and not path.query:
            self.bucket.read_bytes[urllib.parse.unquote(path.path).removeprefix(f"/{BUCKET}/")] += len(data)
        self.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = reply.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return body

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

    def log_message(self, format: str, *arguments: Any) -> None:
        """No line for each request."""
