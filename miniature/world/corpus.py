"""Corpus generator: films of the world as MP4 files in VGGSound's layout, a CSV without header, and the ground truth.

`python -m miniature.world.corpus --folder DIR --clips 24 --seed 0`
"""

from __future__ import annotations

import csv
import json
import os
import string
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypeVar

import ffmpeg
import numpy as np
import typer

from miniature.world.film import Film, FilmPlan, Split, World, plan_film
from miniature.world.places import HEIGHT_PX, WIDTH_PX
from miniature.world.sounds import speaker
from pipelines.errors import UserError, run_command
from pipelines.media.normalise import temporary_beside
from pipelines.media.process import Deadline, run

CORPUS_VERSION = 3
"""Raise it when the same seed would give other films."""

TEST_EVERY = 5
"""Spacing of test films: prime to the number of objects, so that all of them come to be tested."""

ENCODE_DEADLINE_S = 120.0
ID_LETTERS = string.ascii_letters + string.digits + "-_"


@dataclass(frozen=True, slots=True)
class Recording:
    """Storage format of a film, and its name."""

    youtube_id: str
    start_s: int
    split: Split
    fps: int
    audio_hz: int
    stereo: bool

    @property
    def file_name(self) -> str:
        """Name of a clip in VGGSound."""
        return f"{self.youtube_id}_{self.start_s:06d}.mp4"


Job = tuple[Path, World, FilmPlan, Recording]
Item = TypeVar("Item")
Result = TypeVar("Result")


def generate_corpus(
    folder: Path, *, clips: int, seed: int, workers: int, world: World | None = None, test_every: int = TEST_EVERY
) -> Path:
    """Write `clips` films to folder/videos, folder/vggsound.csv and folder/truth.json; returns the CSV's path.

    The CSV has rows youtube_id, start_s, label, split (train or test) and no header. truth.json holds the content of
    every film with exact times, for tests and scores; no stage reads it. A film depends on (seed, its number, its
    split, world) only: films that are there already, by truth.json, are left alone. The world is the usual one if None;
    one film in `test_every` is for testing.

    Raises:
        ValueError: the machine lacks the world's voice; all is left as it was.
    """
    world = world or World()
    speaker(world.voice)
    videos, listing, truth_file = folder / "videos", folder / "vggsound.csv", folder / "truth.json"
    jobs: dict[str, Job] = {}
    for number in range(clips):
        split: Split = "test" if number % test_every == test_every - 1 else "train"
        plan = plan_film(world, seed, split, number)
        recording = _recording(plan, split)
        jobs[recording.file_name] = videos, world, plan, recording
    made_for = {"version": CORPUS_VERSION, "seed": seed, "world": json.loads(json.dumps(asdict(world)))}
    films = _films_there(folder, made_for)
    if films.keys() == jobs.keys() and listing.exists():
        return listing
    videos.mkdir(parents=True, exist_ok=True)
    truth_file.unlink(missing_ok=True)
    for stale in films.keys() - jobs.keys():
        (videos / stale).unlink()
    missing = [job for name, job in jobs.items() if name not in films]
    films |= {film["file"]: film for film in map_in_processes(_make_film, missing, workers)}
    rows = [films[name] for name in jobs]
    with listing.open("w", newline="") as file:
        columns = ("youtube_id", "start_s", "label", "split")
        csv.writer(file).writerows([row[column] for column in columns] for row in rows)
    with temporary_beside(truth_file) as temporary:
        temporary.write_text(json.dumps(made_for | {"clips": rows}, indent=1))
        temporary.replace(truth_file)
    return listing


def map_in_processes(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> list[Result]:
    """Results of a function of a module, in the order of the items."""
    if workers == 1 or len(items) < 2:
        return [function(item) for item in items]
    # Spawned, not forked: the caller may hold threads (Ray, torch) whose locks a fork would copy.
    with ProcessPoolExecutor(min(workers, len(items)), mp_context=get_context("spawn")) as pool:
        return list(pool.map(function, items, chunksize=4))


def _recording(plan: FilmPlan, split: Split) -> Recording:
    rng = np.random.default_rng([*plan.seed, 3])
    return Recording(
        youtube_id="".join(ID_LETTERS[k] for k in rng.integers(len(ID_LETTERS), size=11)),
        start_s=int(rng.integers(0, 300)),
        split=split,
        fps=int(rng.choice([24, 30])),
        audio_hz=int(rng.choice([44_100, 48_000])),
        stereo=bool(rng.random() < 0.6),
    )


def _films_there(folder: Path, made_for: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Ground truth, by file name, of every finished film of this seed and world."""
    try:
        truth = json.loads((folder / "truth.json").read_text())
    except FileNotFoundError:
        return {}
    if any(truth.get(name) != value for name, value in made_for.items()):
        for clip in truth["clips"]:
            (folder / "videos" / clip["file"]).unlink(missing_ok=True)
        return {}
    return {clip["file"]: clip for clip in truth["clips"] if (folder / "videos" / clip["file"]).exists()}


def _make_film(job: Job) -> dict[str, Any]:
    videos, world, plan, recording = job
    film = Film(world, plan)
    frames = film.frames([index / recording.fps for index in range(round(world.duration_s * recording.fps))])
    sound = film.sound(recording.audio_hz, stereo=recording.stereo)
    _encode(frames, sound, recording, videos / recording.file_name)
    truth: dict[str, Any] = json.loads(json.dumps(film.truth()))
    return asdict(recording) | {"file": recording.file_name, "label": plan.label} | truth


def _encode(frames: np.ndarray, sound: np.ndarray, film: Recording, out: Path) -> None:
    """H.264 with B-frames and AAC in MP4, as found on the web; the same bytes on every processor."""
    import soundfile

    with TemporaryDirectory() as scratch, temporary_beside(out) as temporary:
        wav = Path(scratch) / "sound.wav"
        soundfile.write(wav, sound, film.audio_hz)
        size = f"{WIDTH_PX}x{HEIGHT_PX}"
        picture = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=size, r=film.fps).video
        coding = {"c:v": "libx264", "preset": "veryfast", "crf": 18, "pix_fmt": "yuv420p", "threads": 1}
        command = picture.output(
            ffmpeg.input(str(wav)).audio, str(temporary), f="mp4", fflags="+bitexact", **coding,
            **{"c:a": "aac", "b:a": "128k", "flags:a": "+bitexact"},
        )  # fmt: skip
        run_ffmpeg(command.global_args("-cpuflags", "0"), frames.tobytes(), film.file_name)
        temporary.replace(out)


def run_ffmpeg(command: Any, data: bytes, subject: str) -> bytes:
    """Standard output of a command of ffmpeg-python that reads `data`. Raises RuntimeError if it fails."""
    argv = command.global_args("-v", "error").compile(overwrite_output=True)
    done = run(argv, subject=subject, deadline=Deadline(ENCODE_DEADLINE_S), stdin=data)
    if done.returncode != 0:
        raise RuntimeError(f"{subject}: ffmpeg could not encode it: {done.stderr}")
    return done.stdout


def _command_line(
    folder: Annotated[Path, typer.Option(help="Where to put videos/, vggsound.csv and truth.json.")],
    clips: Annotated[int, typer.Option(help="How many films.", min=1)] = 24,
    seed: Annotated[int, typer.Option(help="Other films for another seed.", min=0)] = 0,
    workers: Annotated[int, typer.Option(help="Processes at once.", min=1)] = os.cpu_count() or 1,
    test_every: Annotated[int, typer.Option(help="One film in so many is for testing.", min=2)] = TEST_EVERY,
    world: Annotated[
        str,
        typer.Option(help="What differs from the usual world, as JSON: " + ", ".join(f.name for f in fields(World))),
    ] = "{}",
) -> None:
    """Make a corpus; films already there are left alone."""
    try:
        wanted = World(**json.loads(world, object_hook=_with_tuples))
        speaker(wanted.voice)
    except (TypeError, ValueError) as error:
        raise UserError(f"--world {world}: {error}") from error
    typer.echo(generate_corpus(folder, clips=clips, seed=seed, workers=workers, world=wanted, test_every=test_every))


def _with_tuples(fields_of_world: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields_of_world.items()}


if __name__ == "__main__":
    run_command("corpus", lambda: typer.run(_command_line), interrupted="the same command begins again")
