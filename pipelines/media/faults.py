"""Exceptions about source files. The names say what is wrong with the source, so they do without "Error"."""

from pipelines.errors import MachineFault


class MediaError(Exception):
    """A source that cannot become a clip. The message says what was got, what was wanted and what to do."""


class UnreadableSource(MediaError):
    """Not a regular file, not media, or a header that cannot be parsed (cut off before its index)."""


class EmptyFile(UnreadableSource):
    """Zero bytes."""


class DamagedSource(MediaError):
    """The decoder met damage inside the wanted seconds, or the file ends before its header says."""


class ChangingSource(MediaError):
    """Its picture changes size, or its sound rate or channels, inside the wanted seconds."""


class NoVideoStream(MediaError):
    """Nothing but sound, subtitles or cover art."""


class NoAudioStream(MediaError):
    """No sound where the settings require it: no stream, or none of it inside the wanted seconds."""


class TooShort(MediaError):
    """Less picture than one clip lasts."""


class DeadlineExceeded(MediaError):
    """A media process did not finish in time and was killed with all its children."""


class NotNormalised(MediaError):
    """A file that `normalise` did not write was given to a reader that trusts frame index to be time."""


class FfmpegMissing(MachineFault):
    """ffmpeg or ffprobe is not installed."""
