"""User-supplied videos: discovery, and normalisation for the network and for playback with new sound."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipelines.errors import MachineFault, UserError, one_line, require_place
from pipelines.media.clip import NormaliserSettings
from pipelines.media.faults import MediaError, TooShort
from pipelines.media.kinds import kind_of
from pipelines.media.normalise import normalise
from pipelines.media.probe import Source, measured, open_source, probe, require_picture
from pipelines.media.process import Deadline, run
from pipelines.media.read import read_frames

PLAYED_LONG_SIDE_PX, PLAYED_CRF = 1920, 16
MAX_FPS = 60
FULL = (errno.ENOSPC, errno.EDQUOT)
DEADLINE_S = 600.0
DEADLINE_PER_S = 20.0
"""Extra deadline for each second of video."""


@dataclass(frozen=True, slots=True)
class PreparedVideo:
    """Normalised video in two sizes: the network's input, and the playback copy."""

    seen: Path
    played: Path
    duration_s: float

    def frames(self, hz: float) -> np.ndarray:
        """Frames (T, H, W, 3) uint8 RGB at `hz`, T = floor(duration_s * hz), which may be 0."""
        if self.duration_s * hz < 1:
            return np.empty((0, 1, 1, 3), np.uint8)
        return read_frames(self.seen, hz)


def prepare_video(path: Path, folder: Path, settings: Callable[[Source], NormaliserSettings]) -> PreparedVideo:
    """Writes both sizes of a video into the empty `folder`.

    `settings` returns those of the network's input. Their duration, at most the video's, applies to both.
    Raises MediaError for a video that cannot be read.
    """
    source = open_source(path, Deadline(DEADLINE_S))
    seen = settings(source)
    played = replace(seen, long_side_px=PLAYED_LONG_SIDE_PX, crf=PLAYED_CRF)
    deadline = Deadline(DEADLINE_S + DEADLINE_PER_S * seen.duration_s)
    made = PreparedVideo(folder / f"{path.stem}.seen.mp4", folder / f"{path.stem}.played.mp4", seen.duration_s)
    normalise(source, made.seen, None, seen, deadline=deadline)
    normalise(source, made.played, None, played, deadline=deadline)
    return made


def settings_for(source: Source, *, duration_s: float | None, least_hz: float) -> NormaliserSettings:
    """Normaliser settings for a video, or its first `duration_s`, in whole frames at a rate near its own.

    Raises TooShort if that is less than one frame.
    """
    fps = max(1, min(MAX_FPS, round(source.video.fps or 25)))
    fps *= math.ceil(least_hz / fps)
    picture_s = picture_duration_s(source, Deadline(DEADLINE_S))
    wanted_s = picture_s if duration_s is None else min(duration_s, picture_s)
    frames = math.floor(wanted_s * fps + 1e-6)
    if frames < 1:
        raise TooShort(f"{source.name}: {picture_s:.3f} s of picture; wanted at least one frame: give a longer video")
    return NormaliserSettings(duration_s=frames / fps, fps=fps)


def picture_duration_s(source: Source, deadline: Deadline) -> float:
    """Picture duration (s) from the first shown frame, by packet times: headers may lack it or be wrong."""
    source = measured(source, deadline)
    argv = ["ffprobe", "-v", "error", "-protocol_whitelist", "file", "-select_streams", str(source.video.index)]
    argv += ["-show_entries", "packet=pts_time,duration_time", "-of", "json", f"file:{source.path}"]
    packets = json.loads(run(argv, subject=source.name, deadline=deadline).stdout or b"{}").get("packets", [])
    usual_s = 1 / (source.video.fps or 25)
    ends = [float(p["pts_time"]) + float(p.get("duration_time", usual_s)) for p in packets if "pts_time" in p]
    if not ends:
        return source.video.duration_s or 0.0
    return max(0.0, max(ends) - source.origin_us / 1e6)


def find_videos(paths: Sequence[Path], say: Callable[[str], None]) -> list[Path]:
    """Video files in `paths`, and those of folders in `paths`, by name; a folder's other files are reported.

    Links are followed; hidden files and subfolders are left alone.
    Raises UserError for an absent path, and if no video is left.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            for folder in sorted(p for p in path.iterdir() if not p.name.startswith(".") and p.is_dir()):
                say(f"passed over the folder {folder}; name it too if its videos are meant")
            for file in sorted(p for p in path.iterdir() if not p.name.startswith(".") and not p.is_dir()):
                try:
                    require_picture(file, probe(file, Deadline(DEADLINE_S)))
                    found.append(file)
                except MediaError as error:
                    say(f"passed over {error}")
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path}: no such video file or folder")
    if not found:
        raise UserError(f"no videos in {', '.join(map(str, paths))}; give video files, or a folder that holds some")
    return found


def refuse_doubles(videos: Sequence[Path], why: str) -> None:
    """Raises UserError if two videos have one stem, and names them."""
    by_stem: dict[str, list[str]] = {}
    for video in videos:
        by_stem.setdefault(video.stem, []).append(str(video))
    doubled = [" and ".join(same) for same in by_stem.values() if len(same) > 1]
    if doubled:
        raise UserError(f"{'; '.join(doubled)}: {why}; rename all but one, or leave them out")


@contextmanager
def one_of_many(
    video: Path, failed: list[str], say: Callable[[str], None], *, common: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Context of the work on one of several videos: what it raises is said, and costs this video alone.

    A fault of the machine (a full disk, a missing ffmpeg) and the classes in `common` end the work on all.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (MachineFault, *common)) or getattr(error, "errno", None) in FULL:
            raise
        failed.append(video.name)
        say(f"{video}: {type(error).__name__}: {one_line(error)}")


def targets_of(videos: Sequence[Path], out: Path) -> list[Path]:
    """Output path of each video: `out` itself, an .mp4 file, for one video; files in the folder `out` for several."""
    suffix = out.suffix.casefold()
    if suffix != ".mp4" and kind_of(out.name) != "other" and not out.is_dir():
        raise UserError(f"-o {out}: {suffix} is not written; give a name that ends in .mp4, or a folder")
    if suffix == ".mp4" and not out.is_dir():
        if len(videos) != 1:
            raise UserError(f"-o {out}: one file for {len(videos)} videos; give a folder instead")
        targets = [out]
    else:
        refuse_doubles(videos, f"all would become one file in {out}")
        if out.exists() and not out.is_dir():
            raise UserError(f"-o {out}: a file; give a folder, or a name that ends in .mp4")
        targets = [out / f"{video.stem}.mp4" for video in videos]
    require_place(targets[0].parent, f"-o {out}")
    own = [target for video, target in zip(videos, targets, strict=True) if target.resolve() == video.resolve()]
    if own:
        raise UserError(f"-o {out}: {own[0]} would be written over; give another folder")
    return targets
