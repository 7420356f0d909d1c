"""Errors meant for the person at the terminal: one line, no traceback, and the exit code that says whose they are."""

import difflib
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

LIMIT_CHARS = 2000


class UserError(Exception):
    """Fault the user can mend: says what was got, what was wanted and what to do. Exit code 2."""


class RunError(Exception):
    """Failure of a run through no fault of the configuration. Exit code 1."""


class MachineFault(RunError):
    """Fault of a machine, not of a row: no ffmpeg, a full disk. Ends the run; nothing is quarantined."""


def one_line(error: BaseException, limit: int = 400) -> str:
    """The error's message on one line, without the noise of line breaks, cut at `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def hint(name: str, known: Collection[str]) -> str:
    """Remedy for an unknown name: the known one that is like it, else all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"wanted one of {', '.join(known)}"


@contextmanager
def user_input() -> Iterator[None]:
    """Turns a library's ValueError about values that do not fit together into a UserError."""
    try:
        yield
    except ValueError as error:
        raise UserError(one_line(error, LIMIT_CHARS)) from error


def run_command(name: str, app: Callable[[], None], *, interrupted: str) -> None:
    """Runs a command line: errors are one line on stderr, exit code 2 if the user can mend them, else 1.

    `interrupted` says what an interruption leaves.
    """
    try:
        app()
    except (UserError, RunError) as error:
        print(f"{name}: {one_line(error, LIMIT_CHARS)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except OSError as error:  # the disk, the bucket or the cluster: nothing that a traceback would explain
        print(f"{name}: {type(error).__name__}: {one_line(error, LIMIT_CHARS)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; {interrupted}", file=sys.stderr)
        sys.exit(130)
