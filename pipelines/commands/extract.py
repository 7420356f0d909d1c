"""Feature extraction from videos with sound and their captions: implementation of `flowley extract`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np

from flowley.features.encode import Encoders, checked_sync, encode_captions, encode_clip
from flowley.features.files import EMPTY_CAPTION_ID, AVFeatures, write_av_features, write_text_features
from flowley.network.config import NetworkConfig
from flowley.network.feature_spec import FeatureSpec
from pipelines.commands.feature_folder import AV_PATTERN, TEXT, require_same_spec, rows_by_clip, write_spec
from pipelines.engine.fingerprint import digest, file_sha256
from pipelines.errors import RunError, UserError, require_place, user_input
from pipelines.media.faults import TooShort
from pipelines.media.normalise import normalise
from pipelines.media.probe import open_source
from pipelines.media.process import Deadline
from pipelines.media.read import read_audio, read_frames
from pipelines.media.videos import DEADLINE_S, find_videos, one_of_many, refuse_doubles, settings_for
from pipelines.progress import Progress
from pipelines.scratch import scratch
from pipelines.tables import NameFinder, TableKind, UserTable, read_table

CLIPS_PER_FILE = 64
"""Clips per feature file, which is the most that an interruption loses."""
SOURCES = "sources.json"
"""File of a feature folder: digest of what each clip was encoded from."""
NAMED = 5
"""Rows that a message names; it counts all."""


CAPTIONS = TableKind(
    "--captions",
    columns={
        "name": ("file", "filename", "file_name", "path", "video", "video_id", "id", "clip_id"),
        "caption": ("text", "description", "captions"),
    },
    required=(frozenset({"name", "caption"}),),
    bare=("name", "caption"),
)
"""Table of captions. Names may have a suffix or none."""


def match_captions(table: UserTable, names: Sequence[str], say: Callable[[str], None]) -> dict[str, str]:
    """Captions by the stem of a video's name; rows that name none of the videos are said.

    Raises UserError for a row that may mean several videos, and for two rows that mean one.
    """
    finder = NameFinder(names)
    found: dict[str, str] = {}
    row_of: dict[int, int] = {}
    unknown: list[str] = []
    for row, (name, caption) in enumerate(zip(table.columns["name"], table.columns["caption"], strict=True)):
        _, places = finder.find(name)
        if len(places) > 1:
            there = " and ".join(names[place] for place in places)
            raise UserError(f"{table.where(row)} names {name!r}, which may be {there}; write the name with its suffix")
        if not places:
            unknown.append(f"{name!r} (line {table.lines[row]})")
            continue
        video = names[places[0]]
        if (first := row_of.setdefault(places[0], row)) != row:
            raise UserError(
                f"{table.where(row)} has a caption of {video}, and so has line {table.lines[first]}; leave one of them"
            )
        if caption:
            found[PurePath(video).stem] = caption
    if unknown:
        dots = ", ..." * (len(unknown) > NAMED)
        say(f"{table.path}: {len(unknown)} captions are of none of these videos: {', '.join(unknown[:NAMED])}{dots}")
    return found


def extract(
    videos: Sequence[Path],
    captions: Path,
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
    table = read_table(str(captions), CAPTIONS)
    found = find_videos(videos, say)
    refuse_doubles(found, "a clip's name must be its own")
    require_place(out, f"-o {out}")
    require_same_spec(out, spec)
    with user_input():
        _check_sync_folder(network, sync)
        encoders = Encoders(spec, network, device=device)
        encoders.load()
    write_spec(out, spec)
    earlier = rows_by_clip(out, AV_PATTERN).keys() - {video.stem for video in found}
    caption_of = match_captions(table, [video.name for video in found] + [f"{clip}.mp4" for clip in earlier], say)
    failed = [f"{video.name} (no caption)" for video in found if video.stem not in caption_of]
    for line in failed:
        say(line)
    failed += _write_all_av(out, [video for video in found if video.stem in caption_of], encoders, sync, say)
    clips = rows_by_clip(out, AV_PATTERN)
    failed += _write_text(out, {clip: caption_of[clip] for clip in clips if clip in caption_of}, encoders, say)
    if failed:
        raise RunError(f"{len(failed)} of {len(found)} videos failed: {', '.join(failed)}; the others are in {out}")
    return len(clips)


def _write_all_av(
    out: Path, videos: Sequence[Path], encoders: Encoders, sync: Path | None, say: Callable[[str], None]
) -> list[str]:
    """Writes the audio-visual features that the folder lacks. Returns the names of videos that failed.

    A video whose bytes, or whose synchronisation features, are no longer those that were encoded is encoded again.
    """
    known = rows_by_clip(out, AV_PATTERN)
    of = _read_sources(out)
    progress = Progress("extract", len(videos), "clips", say)
    failed: list[str] = []
    made: dict[str, tuple[AVFeatures, str]] = {}
    for number, video in enumerate(videos, start=1):
        with one_of_many(video, failed, say):
            source = _source_digest(video, sync)
            if video.stem not in known or of.get(video.stem) != source:
                made[video.stem] = _encode(encoders, sync, video), source
        if made and (len(made) == CLIPS_PER_FILE or number == len(videos)):
            _write_av(out, [features for features, _ in made.values()])
            of |= {clip: source for clip, (_, source) in made.items()}
            _write_sources(out, of)  # after the features: what it lacks is encoded again
            made = {}
        progress.advance(1)
    return failed


def _source_digest(video: Path, sync: Path | None) -> str:
    return digest([file_sha256(file) for file in (video, sync and sync / f"{video.stem}.npy") if file])


def _read_sources(out: Path) -> dict[str, str]:
    """Digest of what each clip's features were made of, by clip id; empty if there is none or it is damaged."""
    try:
        return dict(json.loads((out / SOURCES).read_text()))
    except (OSError, ValueError):
        return {}


def _write_sources(out: Path, of: Mapping[str, str]) -> None:
    partial = out / f".{SOURCES}.partial"
    partial.write_text(json.dumps(of, indent=1))
    partial.replace(out / SOURCES)


def _encode(encoders: Encoders, sync_folder: Path | None, video: Path) -> AVFeatures:
    """Audio-visual features of the first `duration_s` of a video."""
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
