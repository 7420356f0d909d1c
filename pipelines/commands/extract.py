"""Feature extraction from videos with sound and their captions: implementation of `flowley extract`."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from flowley.features.encode import Encoders, checked_sync, encode_captions, encode_clip
from flowley.features.files import EMPTY_CAPTION_ID, AVFeatures, write_av_features, write_text_features
from flowley.network.config import NetworkConfig
from flowley.network.feature_spec import FeatureSpec
from pipelines.commands.feature_folder import AV_PATTERN, TEXT, rows_by_clip, write_spec
from pipelines.errors import RunError, UserError, one_line, user_input
from pipelines.media.faults import MediaError, TooShort
from pipelines.media.normalise import normalise
from pipelines.media.probe import open_source
from pipelines.media.process import Deadline
from pipelines.media.read import read_audio, read_frames
from pipelines.media.videos import DEADLINE_S, find_videos, settings_for
from pipelines.progress import Progress
from pipelines.scratch import scratch

CLIPS_PER_FILE = 64
"""Clips per feature file, which is the most that an interruption loses."""


def read_captions(file: Path) -> dict[str, str]:
    """Captions by stem from a CSV with the header `name,caption`; names may be file names. Raises UserError."""
    if not file.is_file():
        raise UserError(f"--captions {file}: no such file; give a CSV with the header name,caption")
    with file.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        if not {"name", "caption"} <= set(reader.fieldnames or []):
            raise UserError(f"--captions {file}: header {reader.fieldnames}, wanted name,caption")
        captions = {Path(row["name"]).stem: row["caption"] or "" for row in reader if row["name"]}
    if not captions:
        raise UserError(f"--captions {file}: no rows; wanted one for each video")
    return captions


def extract(
    videos: Sequence[Path],
    captions: Mapping[str, str],
    out: Path,
    *,
    network: NetworkConfig,
    spec: FeatureSpec,
    sync: Path | None,
    device: str,
    say: Callable[[str], None],
) -> int:
    """Writes the features of all videos that have a caption; returns the folder's number of clips.

    The same command resumes after an interruption. Raises UserError for encoders that do not fit the network,
    RunError if any video failed (after the rest).
    """
    found = find_videos(videos, say)
    doubled = sorted(stem for stem, count in Counter(video.stem for video in found).items() if count > 1)
    if doubled:
        raise UserError(f"several videos are named {', '.join(doubled)}; a clip's name must be its own")
    with user_input():
        _check_sync_folder(network, sync)
        encoders = Encoders(spec, network, device=device)
        encoders.load()
    write_spec(out, spec)
    known = rows_by_clip(out, AV_PATTERN)
    failed = [f"{v.name} (no caption)" for v in found if v.stem not in captions]
    for line in failed:
        say(line)
    todo = [v for v in found if v.stem in captions and v.stem not in known]
    progress = Progress("extract", len(todo), "clips", say)
    for start in range(0, len(todo), CLIPS_PER_FILE):
        made = []
        for video in todo[start : start + CLIPS_PER_FILE]:
            try:
                made.append(_encode(encoders, sync, video))
            except (MediaError, OSError, ValueError) as error:
                failed.append(video.name)
                say(f"{video}: {type(error).__name__}: {one_line(error)}")
            progress.advance(1)
        if made:
            _write_av(out, made)
    clips = rows_by_clip(out, AV_PATTERN)
    failed += _write_text(out, {clip: captions[clip] for clip in clips if clip in captions}, encoders, say)
    if failed:
        raise RunError(f"{len(failed)} of {len(found)} videos failed: {', '.join(failed)}; the others are in {out}")
    return len(clips)


def _encode(encoders: Encoders, sync_folder: Path | None, video: Path) -> AVFeatures:
    """Audio-visual features of the first `duration_s` of a video. Raises MediaError, OSError, ValueError."""
    r_v, duration_s = float(encoders.config.r_v), encoders.spec.duration_s
    deadline = Deadline(DEADLINE_S)
    source = open_source(video, deadline)
    settings = settings_for(source, duration_s=duration_s, least_hz=r_v)
    if settings.duration_s < duration_s - 1 / settings.fps:
        raise TooShort(f"{video.name}: {settings.duration_s:g} s; wanted {duration_s:g} s: leave it out")
    with scratch("extract") as folder:
        clip, sound = folder / "clip.mp4", folder / "clip.flac"
        normalise(source, clip, sound, settings, deadline=deadline)
        frames, wave = read_frames(clip, r_v), read_audio(sound, encoders.codec.audio_hz)
    sync = None
    if sync_folder is not None:
        name = f"{video.stem}.npy"
        array = np.load(sync_folder / name, allow_pickle=False)
        sync = checked_sync(array, encoders.config, duration_s, name=name)
    return encode_clip(encoders, video.stem, frames, wave, sync=sync)


def _check_sync_folder(network: NetworkConfig, folder: Path | None) -> None:
    if network.sync_dim == 0 and folder is not None:
        raise ValueError(f"--sync {folder}: this preset takes no synchronisation features; leave it out")
    if network.sync_dim != 0 and folder is None:
        raise ValueError(
            f"--sync is missing: this preset takes synchronisation features (L, {network.sync_dim}); give a folder "
            "with one .npy for each video"
        )


def _write_av(out: Path, made: list[AVFeatures]) -> None:
    number = len(list(out.glob(AV_PATTERN)))
    partial = out / ".av.partial"
    write_av_features(partial, made)
    partial.replace(out / AV_PATTERN.replace("*", f"{number:05d}"))


def _write_text(out: Path, captions: Mapping[str, str], encoders: Encoders, say: Callable[[str], None]) -> list[str]:
    """Encodes all captions again: they are cheap and may have changed. Returns clips whose caption is too long."""
    encoded = encode_captions(encoders, {EMPTY_CAPTION_ID: "", **captions})
    too_long = [one for one in encoded if one.tokens_cut]
    for one in too_long:
        say(f"{one.clip_id}: caption is {one.tokens_cut} tokens longer than {encoders.text.max_tokens}; shorten it")
    partial = out / ".text.partial"
    write_text_features(partial, [one for one in encoded if not one.tokens_cut])
    partial.replace(out / TEXT)
    return [f"{one.clip_id} (caption)" for one in too_long]
