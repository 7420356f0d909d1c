"""`flowley extract`: videos with sound and their captions to feature files, in one process."""

from __future__ import annotations

import csv
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.entry import user_input
from pipelines.errors import RunError, UserError, one_line
from pipelines.films import DEADLINE_S, find_videos, seen_settings
from pipelines.media.errors import FfmpegMissing, MediaError, TooShort
from pipelines.progress import Progress
from pipelines.standalone.features import AV_PATTERN, EMPTY_CAPTION_ID, TEXT, rows_by_clip, write_spec

if TYPE_CHECKING:
    from flowley.codecs import AudioCodec
    from flowley.config import NetworkConfig
    from flowley.encoders import TextEncoder, VisualEncoder
    from flowley.feature_spec import FeatureSpec
    from flowley.features import AVFeatures
    from pipelines.featuring import GivenSync

CLIPS_PER_FILE = 64
"""What an interruption can cost."""
CAPTIONS_AT_ONCE = 256


def read_captions(file: Path) -> dict[str, str]:
    """Caption by stem from a CSV with the header `name,caption`; a name may be a file's. Raises UserError."""
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
    """Writes the features of all videos that have a caption; returns how many clips the folder has then.

    The same command goes on after an interruption. Raises UserError for encoders that do not fit the network,
    RunError if any video failed (after the rest).
    """
    found = find_videos(videos, say)
    doubled = sorted(stem for stem, count in Counter(video.stem for video in found).items() if count > 1)
    if doubled:
        raise UserError(f"several videos are named {', '.join(doubled)}; a clip's name must be its own")
    with user_input():
        encoders = Encoders(network, spec, _given_sync(network, sync, spec.duration_s), device)
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
                made.append(encoders.encode(video))
            except FfmpegMissing as error:
                raise RunError(one_line(error)) from error
            except (MediaError, OSError, ValueError) as error:
                failed.append(video.name)
                say(f"{video}: {type(error).__name__}: {one_line(error)}")
            progress.advance(1)
        if made:
            _write_av(out, made)
    clips = rows_by_clip(out, AV_PATTERN)
    failed += _write_text(out, {clip: captions[clip] for clip in clips if clip in captions}, encoders.text, say)
    if failed:
        raise RunError(f"{len(failed)} of {len(found)} videos failed: {', '.join(failed)}; the others are in {out}")
    return len(clips)


@dataclass
class Encoders:
    """The frozen encoders and the codec, loaded when first needed."""

    network: NetworkConfig
    spec: FeatureSpec
    sync: GivenSync | None
    device: str

    def load(self) -> None:
        """Raises ValueError where one does not load or is not for the network."""
        _ = self.visual, self.text, self.codec

    def encode(self, video: Path) -> AVFeatures:
        """Features of the first `duration_s` of one video. Raises MediaError, OSError, ValueError."""
        import torch

        from flowley.features import AVFeatures
        from pipelines.media.normalise import normalise
        from pipelines.media.read import read_audio, read_frames

        r_v = float(self.network.r_v)
        seen = seen_settings(video, duration_s=self.spec.duration_s, least_hz=r_v, require_audio=True)
        if seen.duration_s < self.spec.duration_s - 1 / seen.fps:
            raise TooShort(f"{video.name}: {seen.duration_s:g} s; wanted {self.spec.duration_s:g} s: leave it out")
        with tempfile.TemporaryDirectory(prefix="flowley-extract-") as folder:
            clip, sound = Path(folder) / "clip.mp4", Path(folder) / "clip.flac"
            normalise(video, clip, sound, seen, deadline_s=DEADLINE_S)
            frames, wave = read_frames(clip, r_v), read_audio(sound, self.codec.audio_hz)
        with torch.inference_mode():
            mean, std = self.codec.encode(torch.from_numpy(wave)[None].to(self.device))
        sync = None if self.sync is None else self.sync.read(f"{video.stem}.npy")
        return AVFeatures(video.stem, self.visual.encode(frames), mean[0].cpu().numpy(), std[0].cpu().numpy(), sync)

    @cached_property
    def visual(self) -> VisualEncoder:
        from flowley.parts import open_visual

        return open_visual(self.spec, self.network, device=self.device)

    @cached_property
    def text(self) -> TextEncoder:
        from flowley.parts import open_text

        return open_text(self.spec, self.network, device=self.device)

    @cached_property
    def codec(self) -> AudioCodec:
        from flowley.parts import open_codec

        return open_codec(self.spec, self.network, device=self.device)


def _given_sync(network: NetworkConfig, folder: Path | None, duration_s: float) -> GivenSync | None:
    from pipelines.featuring import GivenSync

    if network.sync_dim == 0 and folder is not None:
        raise ValueError(f"--sync {folder}: this preset takes no synchronisation features; leave it out")
    if network.sync_dim != 0 and folder is None:
        raise ValueError(
            f"--sync is missing: this preset takes synchronisation features (L, {network.sync_dim}); give a folder "
            "with one .npy for each video"
        )
    return None if folder is None else GivenSync(str(folder), network.sync_dim, network.sync_length(duration_s))


def _write_av(out: Path, made: list[AVFeatures]) -> None:
    from flowley.features import write_av_features

    number = len(list(out.glob(AV_PATTERN)))
    partial = out / ".av.partial"
    write_av_features(partial, made)
    partial.replace(out / AV_PATTERN.replace("*", f"{number:05d}"))


def _write_text(out: Path, captions: Mapping[str, str], encoder: TextEncoder, say: Callable[[str], None]) -> list[str]:
    """Writes all captions anew: they are cheap, and may have changed. Returns the clips whose caption is too long."""
    from flowley.features import TextFeatures, write_text_features

    rows, too_long = [], []
    texts = [(EMPTY_CAPTION_ID, ""), *captions.items()]
    for start in range(0, len(texts), CAPTIONS_AT_ONCE):
        some = texts[start : start + CAPTIONS_AT_ONCE]
        for (clip_id, _), one in zip(some, encoder.encode([text for _, text in some]), strict=True):
            if one.tokens_cut:
                too_long.append(f"{clip_id} (caption)")
                say(f"{clip_id}: caption is {one.tokens_cut} tokens longer than {encoder.max_tokens}; shorten it")
            else:
                rows.append(TextFeatures(clip_id, one.features, one.n_tokens))
    partial = out / ".text.partial"
    write_text_features(partial, rows)
    partial.replace(out / TEXT)
    return too_long
