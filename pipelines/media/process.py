"""Process runner for ffmpeg and ffprobe, with hard deadlines."""

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.media.faults import DeadlineExceeded, FfmpegMissing, KilledProcess, UnreadableSource

REAP_S = 5.0
LOG_TAIL_CHARS = 240
MEMORY_BYTES = 6 * 2**30
"""Memory that one process may take; an ordinary clip takes some 0.3 GB. A file that wants more fails by itself, before
the machine's memory is gone and takes its neighbours with it."""
KILLS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Deadline:
    """Wall-clock budget shared by the processes that work on one source."""

    total_s: float
    started_s: float = field(default_factory=time.monotonic)

    def left_s(self) -> float:
        """Seconds left, at least a millisecond so that a spent budget still kills at once."""
        return max(1e-3, self.started_s + self.total_s - time.monotonic())


@dataclass(frozen=True, slots=True)
class Finished:
    """Exit status and output of a process."""

    returncode: int
    stdout: bytes
    stderr: str


def run(argv: Sequence[str], *, subject: str, deadline: Deadline, stdin: bytes | None = None) -> Finished:
    """Runs `argv` in a session of its own; at the deadline kills the whole process group.

    subject: name of the source, for messages. stdin: bytes to feed, or None for /dev/null.
    Raises DeadlineExceeded, KilledProcess when something else ended it, and FfmpegMissing when the program is not
    on PATH. A crash of the program itself is no such end: its input may be the cause.
    """
    program = shutil.which(argv[0])
    if program is None:
        raise FfmpegMissing(f"{argv[0]} is not on PATH; install ffmpeg (apt-get install ffmpeg)")
    with tempfile.TemporaryFile() as log:  # a pipe would wake this process up for every line
        process = subprocess.Popen(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            # Not the address space: each of a hundred cores' threads may reserve some, which costs nothing.
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
        try:
            stdout, _ = process.communicate(stdin, timeout=deadline.left_s())
        except subprocess.TimeoutExpired:
            raise DeadlineExceeded(
                f"{subject}: {argv[0]} was killed after {deadline.total_s:g} s, the time allowed for one source; "
                "try the file by hand, and raise the deadline if it is only slow"
            ) from None
        finally:
            if process.returncode is None:
                _kill_group(process)
        log.seek(0)
        stderr = log.read().decode("utf-8", errors="replace")
    if -process.returncode in KILLS:
        raise KilledProcess(
            f"{subject}: {argv[0]} was ended by signal {-process.returncode}, as when memory runs out; use fewer "
            "workers on a node, or nodes with more memory"
        )
    return Finished(process.returncode, stdout, stderr)


def run_ffmpeg(
    output: Any, source: Path, deadline: Deadline, *, fault: str, wanted: str, stdin: bytes | None = None
) -> bytes:
    """Runs an ffmpeg-python command that reads `source`; returns its standard output.

    Raises as `run`, and UnreadableSource with the words of `fault` and `wanted` if ffmpeg fails.
    """
    quiet = output.global_args("-hide_banner", "-nostats", "-loglevel", "level+warning")
    done = run(quiet.compile(overwrite_output=True), subject=source.name, deadline=deadline, stdin=stdin)
    if done.returncode != 0:
        reason = log_tail(done.stderr, source) or "no reason given"
        raise UnreadableSource(f"{source.name}: {fault} ({reason}); wanted {wanted}")
    return done.stdout


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # A process stuck in the kernel (a dead network mount) ignores even SIGKILL, so the wait is limited.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=REAP_S)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def log_tail(stderr: str, source: Path) -> str:
    """Last two distinct complaints of ffmpeg or ffprobe, without addresses and folders, on one line."""
    complaints: list[str] = []
    for line in stderr.splitlines():
        level = re.search(r"\[(warning|error|fatal|panic)\] ", line)
        if level is None:
            continue
        text = re.sub(r"\[([^\[\]]+?) @ 0x[0-9a-f]+\] ?", r"\1: ", line.replace(level.group(0), "")).strip()
        text = text.replace(f"file:{source}", source.name).replace(str(source), source.name)
        if text and text not in complaints:
            complaints.append(text)
    return " | ".join(complaints[-2:])[:LOG_TAIL_CHARS]
