"""Exceptions about source files. The names say what is wrong with the source, so they do without "Error"."""

from pipelines.errors import MachineFault


class MediaError(Exception):
    """Fault of a source that cannot become a clip. The message says what was got, what was wanted and what to do."""


class UnreadableSource(MediaError):
    """File that is not regular, not media, or has an unreadable header (cut off before its index)."""


class EmptyFile(UnreadableSource):
    """File of zero bytes."""


class DamagedSource(MediaError):
    """Damage that the decoder meets inside the wanted seconds, or a file shorter than its header says."""


class ChangingSource(MediaError):
    """Source whose picture size, sample rate or channels change inside the wanted seconds."""


class UnreadStream(MediaError):
    """Stream that is whole, but of a kind that is not read: colours or channels that no one says how to read."""


class NoVideoStream(MediaError):
    """Source with nothing but sound, subtitles or cover art."""


class NoAudioStream(MediaError):
    """Missing sound where it is required: no stream, or none of it inside the wanted seconds."""


class TooShort(MediaError):
    """Source whose picture is shorter than one clip."""


class DeadlineExceeded(MediaError):
    """Timeout of a media process, which was killed with all its children."""


class NotNormalised(MediaError):
    """File not written by `normalise`, passed to a reader that relies on frame index being time."""


class KilledProcess(MachineFault):
    """ffmpeg or ffprobe that somebody else ended: an out-of-memory killer, a node that is taken back."""


class FfmpegMissing(MachineFault):
    """ffmpeg or ffprobe is not installed."""
