"""Make a small corpus in VGGSound's shape: ordinary MP4 files, a CSV without header, and the truth of both.

`python -m pipelines.demo.corpus --folder DIR --clips 24 --seed 0`
"""

import csv
import json
import string
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import ffmpeg
import numpy as np
import typer

from pipelines.demo import sounds
from pipelines.demo.canvas import Canvas
from pipelines.demo.scenes import SCENES
from pipelines.demo.setting import HEIGHT_PX, WIDTH_PX, Scene
from pipelines.media.normalise import temporary_beside
from pipelines.media.process import Deadline, run

CORPUS_VERSION = 1
"""Raise it when the same seed would give other films."""

TEST_EVERY = 5
"""Each fifth film is for testing: prime to the number of scenes, so that all scenes come to be tested."""

MIN_DURATION_S = 2.0
"""In shorter films nothing might happen."""

ENCODE_DEADLINE_S = 120.0
ID_LETTERS = string.ascii_letters + string.digits + "-_"


@dataclass(frozen=True, slots=True)
class Film:
    """All that is decided about one film before it is made."""

    youtube_id: str
    start_s: int
    label: str
    split: str
    fps: int
    audio_hz: int
    stereo: bool
    off_screen: str | None

    @property
    def file_name(self) -> str:
        """VGGSound's way to name clips."""
        return f"{self.youtube_id}_{self.start_s:06d}.mp4"


def generate_corpus(folder: Path, *, clips: int, duration_s: float = 10.0, seed: int, workers: int) -> Path:
    """Write `clips` films to folder/videos, folder/vggsound.csv and folder/truth.json; return the CSV's path.

    The CSV has rows youtube_id, start_s, label, split (train or test) and no header. truth.json holds the
    exact times of what is seen and heard, for tests and for judging; no stage reads it. A film depends on
    (seed, its number, duration_s) only: films that are there already, by truth.json, are left alone.
    Raises ValueError for films under 2 s.
    """
    if duration_s < MIN_DURATION_S:
        raise ValueError(
            f"duration_s is {duration_s:g}, wanted at least {MIN_DURATION_S:g} s for things to happen"
        )
    films = [_plan(seed, number) for number in range(clips)]
    kept = _films_there(folder, seed, duration_s)
    wanted = {film.file_name for film in films}
    truth_file = folder / "truth.json"
    if kept.keys() == wanted and (folder / "vggsound.csv").exists():
        return folder / "vggsound.csv"
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    truth_file.unlink(missing_ok=True)
    for stale in kept.keys() - wanted:
        (folder / "videos" / stale).unlink()
    missing = [number for number, film in enumerate(films) if film.file_name not in kept]
    jobs = [(folder / "videos", seed, number, duration_s) for number in missing]
    if workers > 1 and len(jobs) > 1:
        # Spawned, not forked: the caller may hold threads (Ray, torch) whose locks a fork would copy.
        with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
            made = list(pool.map(_make_film, jobs))
    else:
        made = [_make_film(job) for job in jobs]
    events = kept | {films[number].file_name: seen for number, seen in zip(missing, made, strict=True)}
    with (folder / "vggsound.csv").open("w", newline="") as file:
        csv.writer(file).writerows([film.youtube_id, film.start_s, film.label, film.split] for film in films)
    truth = {
        "version": CORPUS_VERSION,
        "seed": seed,
        "duration_s": duration_s,
        "clips": [
            asdict(film) | {"file": film.file_name, "events": events[film.file_name]} for film in films
        ],
    }
    with temporary_beside(truth_file) as temporary:
        temporary.write_text(json.dumps(truth, indent=1))
        temporary.replace(truth_file)
    return folder / "vggsound.csv"


def _plan(seed: int, number: int) -> Film:
    rng = np.random.default_rng([seed, number])
    return Film(
        youtube_id="".join(ID_LETTERS[k] for k in rng.integers(len(ID_LETTERS), size=11)),
        start_s=int(rng.integers(0, 300)),
        label=list(SCENES)[number % len(SCENES)],
        split="test" if number % TEST_EVERY == TEST_EVERY - 1 else "train",
        fps=int(rng.choice([24, 30])),
        audio_hz=int(rng.choice([44_100, 48_000])),
        stereo=bool(rng.random() < 0.6),
        off_screen=[None, None, "music", "narration"][rng.integers(4)],
    )


def _films_there(folder: Path, seed: int, duration_s: float) -> dict[str, list[dict[str, Any]]]:
    """Events by file name of every finished film of this seed and duration."""
    try:
        truth = json.loads((folder / "truth.json").read_text())
    except FileNotFoundError:
        return {}
    if (truth["version"], truth["seed"], truth["duration_s"]) != (CORPUS_VERSION, seed, duration_s):
        for clip in truth["clips"]:
            (folder / "videos" / clip["file"]).unlink(missing_ok=True)
        return {}
    return {c["file"]: c["events"] for c in truth["clips"] if (folder / "videos" / c["file"]).exists()}


def _make_film(job: tuple[Path, int, int, float]) -> list[dict[str, Any]]:
    videos, seed, number, duration_s = job
    film = _plan(seed, number)
    rng = np.random.default_rng([seed, number, 1])
    scene: Scene = SCENES[film.label](rng, duration_s)  # type: ignore[call-arg]
    frames = [_draw(scene, index / film.fps) for index in range(round(duration_s * film.fps))]
    _encode(np.stack(frames), _mix(scene, film, duration_s, rng), film, videos / film.file_name)
    return [asdict(event) for event in scene.events]


def _draw(scene: Scene, t_s: float) -> np.ndarray:
    canvas = Canvas(scene.background)
    scene.draw(canvas, t_s)
    return canvas.pixels()


def _mix(scene: Scene, film: Film, duration_s: float, rng: np.random.Generator) -> np.ndarray:
    """(N, 1 or 2) samples: the scene where it is seen, what is off screen in the middle, a quiet room."""
    seen = scene.sound(duration_s, film.audio_hz)
    seen = 0.6 * seen / np.abs(seen).max()
    other = np.zeros_like(seen)
    if film.off_screen is not None:
        layer = {"music": sounds.music, "narration": sounds.narration}[film.off_screen]
        other = layer(duration_s, film.audio_hz, rng)
        other = 0.2 * other / np.abs(other).max()
    right = scene.x if film.stereo else 0.5
    gains = np.sqrt(2 * np.array([1 - right, right])) if film.stereo else np.ones(1)
    hiss = rng.normal(0, 0.0015, (len(seen), len(gains)))
    return np.asarray(np.clip(seen[:, None] * gains + other[:, None] + hiss, -1, 1))


def _encode(frames: np.ndarray, sound: np.ndarray, film: Film, out: Path) -> None:
    """H.264 with B-frames and AAC in MP4, as found on the web."""
    import soundfile

    size = f"{WIDTH_PX}x{HEIGHT_PX}"
    with TemporaryDirectory() as scratch, temporary_beside(out) as temporary:
        wav = Path(scratch) / "sound.wav"
        soundfile.write(wav, sound, film.audio_hz)
        picture = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=size, r=film.fps).video
        coding = {"c:v": "libx264", "preset": "veryfast", "crf": 18, "pix_fmt": "yuv420p", "threads": 1}
        command = picture.output(
            ffmpeg.input(str(wav)).audio, str(temporary), f="mp4", fflags="+bitexact", **coding,
            **{"c:a": "aac", "b:a": "128k", "flags:a": "+bitexact"},
        ).global_args("-v", "error")  # fmt: skip
        argv = command.compile(overwrite_output=True)
        deadline = Deadline(ENCODE_DEADLINE_S)
        done = run(argv, subject=film.file_name, deadline=deadline, stdin=frames.tobytes())
        if done.returncode != 0:
            raise RuntimeError(f"{film.file_name}: ffmpeg could not encode a film of the demo: {done.stderr}")
        temporary.replace(out)


def _command_line(
    folder: Annotated[Path, typer.Option(help="Where to put videos/, vggsound.csv and truth.json.")],
    clips: Annotated[int, typer.Option(help="How many films.", min=1)] = 24,
    seed: Annotated[int, typer.Option(help="Other films for another seed.", min=0)] = 0,
    duration_s: Annotated[float, typer.Option(help="Seconds of each film.", min=MIN_DURATION_S)] = 10.0,
    workers: Annotated[int, typer.Option(help="Processes at once.", min=1)] = 2,
) -> None:
    """Make the demo corpus; films already there are left alone."""
    typer.echo(generate_corpus(folder, clips=clips, duration_s=duration_s, seed=seed, workers=workers))


if __name__ == "__main__":
    typer.run(_command_line)
