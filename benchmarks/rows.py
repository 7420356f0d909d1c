"""Time and memory of the row engine's commands on a store of many rows, without media.

`python -m benchmarks.rows [--clips N] [--s3] [--json]` makes a store in which every stage is done, then runs each
command as its own process. `--s3` also plans with the store in a bucket that takes 20 ms a request.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REQUEST_S = 0.02


def main() -> None:
    """Prints one figure a line, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=200_000)
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soundcap-rows-") as name:
        figures = measure(Path(name), arguments.clips, with_s3=arguments.s3)
    if arguments.json:
        print(json.dumps(figures))
    else:
        for key, value in figures.items():
            print(f"{key:16} {value}")


def measure(folder: Path, clips: int, *, with_s3: bool) -> dict[str, float | None]:
    """Wall time (s) and peak memory (GB) of each command on a store of `clips` rows a stage."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # where the source's listing is remembered
    # In another process: a command's peak memory counts that of the process that starts it.
    subprocess.run([sys.executable, "-m", "benchmarks.row_store", str(folder), str(clips)], cwd=ROOT, check=True)
    config = str(folder / "config.yaml")
    commands = {
        "plan_rescan": ["plan", config, "--rescan"],
        "plan_done": ["plan", config],
        "plan_edited": ["plan", config, "--set", f"captions.warnings={folder}/edited.yaml"],
        "status": ["status", config],
        "noop_run": ["run", config, "--until", "captions"],
        "publish": ["publish", config, "--to", str(folder / "published")],
        "report": ["report", config],
    }
    figures: dict[str, float | None] = {"clips": clips}
    for name, command in commands.items():
        seconds, gb = run(command)
        figures[f"{name}_s"] = round(seconds, 2)
        if name not in ("status", "plan_rescan"):
            figures[f"{name.removesuffix('_run')}_gb"] = round(gb, 3)
    figures["s3_plan_s"] = _s3_plan_s(folder) if with_s3 else None
    return figures


def run(arguments: list[str], environment: dict[str, str] | None = None) -> tuple[float, float]:
    """Wall time (s) and peak memory (GB) of a `soundcap` command in its own process."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "pipelines.cli.soundcap", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | (environment or {})
    )
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}: {said}")
    return time.perf_counter() - started, usage.ru_maxrss / 2**20


# --- the store in a bucket ------------------------------------------------------------------------------------


class SlowBucket(BaseHTTPRequestHandler):
    """HTTP proxy that passes requests to an S3 server at `port`, each REQUEST_S later."""

    protocol_version = "HTTP/1.1"
    port = 0

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(REQUEST_S)
        server = http.client.HTTPConnection("127.0.0.1", self.port)
        server.request(self.command, self.path, body, dict(self.headers))
        reply = server.getresponse()
        data = reply.read()
        self.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = reply.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

    def log_message(self, format: str, *arguments: Any) -> None:
        """No line for each request."""


def _s3_plan_s(folder: Path) -> float:
    """Wall time of `plan` with the store in a bucket, all stages done."""
    import s3fs
    from moto.server import ThreadedMotoServer

    from pipelines.engine.storage import Storage

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    with contextlib.redirect_stdout(sys.stderr):  # moto says where it listens
        server.start()
    _, SlowBucket.port = server.get_host_and_port()
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), SlowBucket)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    environment = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= environment | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{SlowBucket.port}"}
    bucket, store = Storage("s3://rows/store"), Storage(str(folder / "store"))
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir("rows")
    for info in store.files(recursive=True):
        if info.size > 0:  # a plan looks at no media, which are empty here
            bucket.write_bytes(info.name, store.read_bytes(info.name))
    slow = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_port}"}
    command = ["plan", str(folder / "config.yaml"), "--set", f"root={bucket.url}"]
    try:
        return round(run(command, slow)[0], 2)
    finally:
        proxy.shutdown()
        server.stop()


if __name__ == "__main__":
    main()
