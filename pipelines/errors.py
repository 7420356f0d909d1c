"""User-facing errors: one line without traceback, and an exit code that tells who can fix them."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

LIMIT_CHARS = 2000
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters and lone surrogates (Unicode categories Cc and Cs)."""


class UserError(Exception):
    """Fault the user can fix: says what was got, what was wanted and what to do. Exit code 2."""


class RunError(Exception):
    """Failure of a run through no fault of the configuration. Exit code 1."""


class MachineFault(RunError):
    """Fault of a machine, not of a row: no ffmpeg, a full disk, a bucket that denies. Nothing is quarantined for it."""


def machine_fault(error: BaseException) -> MachineFault | None:
    """Machine's fault that an exception tells of, or None. Files, networks, credentials and Ray are its."""
    if isinstance(error, MachineFault):
        return error
    library = type(error).__module__.split(".")[0]
    is_ray = library == "ray" and "RayTaskError" not in type(error).__name__  # that is an error of the task's own
    if isinstance(error, OSError) or is_ray or library in ("botocore", "aiobotocore", "aiohttp"):
        remedy = "; docs/operators.md says how a bucket is reached" if "Credential" in type(error).__name__ else ""
        return MachineFault(f"{type(error).__name__}: {one_line(error)}{remedy}")
    return None


def printable(text: str) -> str:
    """Text for a terminal: control characters, and halves of characters, are shown by their codes, not obeyed."""
    return CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def one_line(error: BaseException, limit: int = 400) -> str:
    """Message of an error on one printable line, truncated to `limit` characters."""
    text = printable(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def hint(name: str, known: Collection[str]) -> str:
    """Remedy for an unknown name: the closest known one, else all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"wanted one of {', '.join(known)}"


@contextmanager
def user_input() -> Iterator[None]:
    """Context that turns a library's ValueError about the user's input into a UserError."""
    try:
        yield
    except ValueError as error:
        raise UserError(one_line(error, LIMIT_CHARS)) from error


def require_place(folder: Path, option: str) -> None:
    """Raises UserError if the folder cannot be made, or nothing can be written to it."""
    if re.match(r"[A-Za-z0-9]+:/", str(folder)):
        raise UserError(f"{option}: only local folders are written; give one")
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UserError(f"{option}: {there} is a file, not a folder; give another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{option}: nothing can be written to {there}; give another place")


def _end_interrupted(name: str, interrupted: str) -> NoReturn:
    print(f"{name}: interrupted; {interrupted}", file=sys.stderr)
    sys.exit(INTERRUPTED)


def run_command(name: str, app: Callable[[], None], *, interrupted: str) -> None:
    """Runs a command line: errors are one line on stderr, exit code 2 if the user can fix them, else 1.

    `interrupted` says what an interruption leaves.
    """
    try:
        app()
    except (UserError, RunError) as error:
        print(f"{name}: {one_line(error, LIMIT_CHARS)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        _end_interrupted(name, interrupted)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer's answer to Ctrl-C, without a word
            _end_interrupted(name, interrupted)
        raise
    except Exception as error:
        fault = machine_fault(error)  # the disk, the bucket or the cluster: nothing that a traceback would explain
        if fault is None:
            raise
        print(f"{name}: {one_line(fault, LIMIT_CHARS)}", file=sys.stderr)
        sys.exit(1)
