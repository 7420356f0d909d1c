"""Errors meant for the person at the terminal: one line, no traceback."""


class UserError(Exception):
    """Something the user can mend: says what was got, what was wanted and what to do. Exit code 2."""


class RunError(Exception):
    """A run that could not finish through no fault of the configuration. Exit code 1."""


class MachineFault(Exception):
    """A worker's machine is at fault, not the row: no ffmpeg, a full disk. Ends the run; nothing is quarantined."""


def one_line(error: BaseException, limit: int = 400) -> str:
    """The error's message on one line, without the noise of line breaks, cut at `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
