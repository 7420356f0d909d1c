"""What every command of this project ends with: errors as one line, and the exit code that says whose they are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipelines.errors import RunError, UserError, one_line

LIMIT_CHARS = 2000


def run_command(name: str, app: Callable[[], None], *, interrupted: str) -> None:
    """Runs a command line: errors that are the user's to mend are one line on stderr, exit code 2; a run's are 1.

    `interrupted` says what an interruption leaves.
    """
    try:
        app()
    except UserError as error:
        print(f"{name}: {one_line(error, LIMIT_CHARS)}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"{name}: {one_line(error, LIMIT_CHARS)}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # the disk, the bucket or the cluster: nothing that a traceback would explain
        print(f"{name}: {type(error).__name__}: {one_line(error, LIMIT_CHARS)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; {interrupted}", file=sys.stderr)
        sys.exit(130)


@contextmanager
def user_input() -> Iterator[None]:
    """What `flowley` says of values that do not fit together, as the user's error."""
    try:
        yield
    except ValueError as error:
        raise UserError(one_line(error, LIMIT_CHARS)) from error
