"""A person's video, made ready for the network and for being shown with its new sound."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import UserError
from pipelines.media.clip import NormaliserSettings
from pipelines.media.errors import MediaError, NoVideoStream, TooShort
from pipelines.media.normalise import normalise
from pipelines.media.probe import SourceInfo, VideoStream, first_shown_us, probe
from pipelines.media.process import Deadline, run

if TYPE_CHECKING:
    import numpy as np

SEEN_LONG_SIDE_PX, SEEN_CRF = 448, 12
"""What the encoder's preprocessing starts from: as the stage `clips` makes it by default."""
SHOWN_LONG_SIDE_PX, SHOWN_CRF = 1920, 16
MAX_AUDIO_HZ = 48_000
MOST_FPS = 60
DEADLINE_S = 600.0
DEADLINE_PER_S = 20.0
"""More for each second of a long video."""


@dataclass(frozen=True, slots=True)
class Film:
    """One video, twice: small, as the network sees it, and as it is shown."""

    seen: Path
    shown: Path
    duration_s: float

    def frames(self, hz: float) -> np.ndarray:
        """(T, H, W, 3) uint8 RGB at `hz`, T = duration_s * hz rounded down; possibly none."""
        import numpy as np

        from pipelines.media.read import read_frames

        if self.duration_s * hz < 1:
            return np.empty((0, 1, 1, 3), np.uint8)
        return read_frames(self.seen, hz)


def make_film(source: Path, folder: Path, *, seen: NormaliserSettings) -> Film:
    """Writes both forms of the first `seen.duration_s` of a video into `folder`. Raises a MediaError."""
    shown = NormaliserSettings(
        seen.duration_s, seen.fps, SHOWN_LONG_SIDE_PX, SHOWN_CRF, seen.max_audio_hz, require_audio=False
    )
    film = Film(folder / f"{source.stem}.seen.mp4", folder / f"{source.stem}.shown.mp4", seen.duration_s)
    unused = folder / f"{source.stem}.flac"
    deadline_s = DEADLINE_S + DEADLINE_PER_S * seen.duration_s
    normalise(source, film.seen, unused, seen, deadline_s=deadline_s)
    normalise(source, film.shown, unused, shown, deadline_s=deadline_s)
    return film


def seen_settings(
    source: Path, *, duration_s: float | None, least_hz: float, require_audio: bool = False
) -> NormaliserSettings:
    """As much of a video as there is, at most `duration_s`, in whole frames at a rate near its own.

    Raises a MediaError for a file without picture.
    """
    deadline = Deadline(DEADLINE_S)
    info = probe(source, deadline)
    video = _require_video(source, info)
    fps = max(1, min(MOST_FPS, round(video.fps or 25)))
    fps *= math.ceil(least_hz / fps)
    there_s = picture_duration_s(source, video, deadline)
    wanted_s = there_s if duration_s is None else min(duration_s, there_s)
    frames = math.floor(wanted_s * fps + 1e-6)
    if frames < 1:
        raise TooShort(f"{source.name}: {there_s:.3f} s of picture; wanted two frames at least: give a longer video")
    return NormaliserSettings(frames / fps, fps, SEEN_LONG_SIDE_PX, SEEN_CRF, MAX_AUDIO_HZ, require_audio)


def picture_duration_s(source: Path, video: VideoStream, deadline: Deadline) -> float:
    """From the first picture shown to the end of the last, by the packets: headers may lack it or be wrong.

    Raises a MediaError.
    """
    argv = ["ffprobe", "-v", "error", "-protocol_whitelist", "file", "-select_streams", str(video.index)]
    argv += ["-show_entries", "packet=pts_time,duration_time", "-of", "json", f"file:{source}"]
    packets = json.loads(run(argv, subject=source.name, deadline=deadline).stdout or b"{}").get("packets", [])
    usual_s = 1 / (video.fps or 25)
    ends = [float(p["pts_time"]) + float(p.get("duration_time", usual_s)) for p in packets if "pts_time" in p]
    if not ends:
        return video.duration_s or 0.0
    return max(0.0, max(ends) - first_shown_us(source, video, deadline) / 1e6)


def is_video(path: Path) -> str | None:
    """None for a file with a picture, else why it is passed over."""
    try:
        _require_video(path, probe(path, Deadline(DEADLINE_S)))
    except MediaError as error:
        return str(error)
    return None


def find_videos(paths: Sequence[Path], say: Callable[[str], None]) -> list[Path]:
    """The files given, and the videos of the folders given, by name; other files of folders are named and passed over.

    Raises UserError for a path that is not there and when nothing is left.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            for file in sorted(p for p in path.iterdir() if p.is_file()):
                why_not = is_video(file)
                if why_not is None:
                    found.append(file)
                else:
                    say(f"passed over {why_not}")
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path}: no such video file or folder")
    if not found:
        raise UserError(f"no videos in {', '.join(map(str, paths))}; give video files, or a folder that holds some")
    return found


def targets_of(videos: Sequence[Path], out: Path) -> list[Path]:
    """Where each video's result goes: `out` is an .mp4 file for one video, a folder for several."""
    if out.suffix == ".mp4":
        if len(videos) != 1:
            raise UserError(f"-o {out}: one file for {len(videos)} videos; give a folder instead")
        targets = [out]
    else:
        names = [f"{video.stem}.mp4" for video in videos]
        doubled = sorted(name for name, count in Counter(names).items() if count > 1)
        if doubled:
            raise UserError(
                f"-o {out}: several videos would become {', '.join(doubled)}; rename them or run them apart"
            )
        if out.is_file():
            raise UserError(f"-o {out}: a file; give a folder, or a name that ends in .mp4")
        targets = [out / name for name in names]
    own = [target for video, target in zip(videos, targets, strict=True) if target.resolve() == video.resolve()]
    if own:
        raise UserError(f"-o {out}: {own[0]} would be written over; give another folder")
    return targets


def _require_video(source: Path, info: SourceInfo) -> VideoStream:
    if info.video is None:
        raise NoVideoStream(f"{source.name}: no video stream; wanted a video: leave this file out")
    return info.video
