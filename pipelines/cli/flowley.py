"""Command-line interface `flowley`: the video-to-audio model alone, in one process. Commands import lazily."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flowley.network.presets import PRESETS
from flowley.network.presets import preset as network_of
from flowley.sampling.solvers import SampleSettings
from pipelines.cli.options import (
    USUAL_DURATION_S,
    AsJson,
    CheckpointPath,
    Codec,
    Device,
    Overrides,
    Text,
    Visual,
    chosen_features,
    new_app,
    parse_assignments,
    quiet_libraries,
    require_device,
    require_gradio,
    say,
    show,
    user_path,
)
from pipelines.errors import UserError, run_command, user_input

if TYPE_CHECKING:
    from flowley.sampling.generator import Generator

app = new_app("Sound for silent video: generate, train, evaluate.")

SAMPLER = SampleSettings()
SHAPE = ("D", "N1", "N2", "heads", "r_a", "r_v", "latent_dim", "visual_dim", "text_dim", "max_text_tokens")
Preset = Annotated[str, typer.Option(metavar="NAME", help="one of `flowley presets`")]


@app.command()
def generate(
    videos: Annotated[
        list[Path], typer.Argument(parser=user_path, metavar="VIDEO...", help="video files, or folders of them")
    ],
    checkpoint: CheckpointPath,
    out: Annotated[
        Path, typer.Option("-o", "--out", parser=user_path, metavar="OUT", help="an .mp4 file, or a folder")
    ],
    caption: Annotated[str | None, typer.Option(metavar="TEXT", help="what should be heard")] = None,
    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="what should not be heard")] = None,
    steps: Annotated[int, typer.Option(help="evaluations of the network")] = SAMPLER.steps,
    guidance: Annotated[float, typer.Option(help="1: none")] = SAMPLER.guidance,
    solver: Annotated[str, typer.Option(help="euler or midpoint")] = SAMPLER.solver,
    seed: Annotated[int, typer.Option(help="another seed, another sound")] = 0,
    duration: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="from the start of each video; else the training's")
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="all of each video")] = False,
    batch: Annotated[int, typer.Option(help="videos at once")] = 8,
    visual: Visual = None,
    text: Text = None,
    codec: Codec = None,
    device: Device = "cpu",
) -> None:
    """Make sound for silent videos."""
    from pipelines.commands import generate as command

    with user_input():
        settings = SampleSettings(steps=steps, guidance=guidance, solver=solver)  # type: ignore[arg-type]
    options = command.GenerateOptions(
        settings=settings, caption=caption, negative=negative, seed=seed, duration_s=duration, whole=whole, batch=batch
    )
    command.generate(lambda: _open(checkpoint, visual, text, codec, device), videos, out, options, say)


@app.command()
def extract(
    videos: Annotated[
        list[Path], typer.Argument(parser=user_path, metavar="VIDEO...", help="video files, or folders of them")
    ],
    captions: Annotated[
        Path, typer.Option(parser=user_path, metavar="TABLE", help="CSV, TSV or Parquet: name, caption")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", parser=user_path, metavar="DIR", help="a folder for the features")
    ],
    visual: Annotated[str, typer.Option(metavar="MODEL", help="visual encoder: a folder, or a hub id[@revision]")],
    text: Annotated[str, typer.Option(metavar="MODEL", help="text encoder: a folder, or a hub id[@revision]")],
    codec: Annotated[str, typer.Option(metavar="NAME[:MODEL]", help="audio codec, and where its weights are")],
    preset: Preset = "flowley_169m",
    duration: Annotated[float, typer.Option(metavar="SECONDS", help="from the start of each video")] = USUAL_DURATION_S,
    sync: Annotated[
        Path | None,
        typer.Option(parser=user_path, metavar="DIR", help="NAME.npy (L, C) of each video, for presets that take them"),
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    device: Device = "cpu",
) -> None:
    """Make feature files of videos with sound and their captions, for `flowley train`."""
    from pipelines.commands import extract as command

    require_device(device)
    quiet_libraries()
    spec = chosen_features(None, visual=visual, text=text, codec=codec, whose="extract")
    with user_input():
        network = network_of(preset, **parse_assignments(overrides))
        spec = replace(spec, duration_s=duration)
    clips = command.extract(
        videos,
        captions,
        out,
        network=network,
        spec=spec,
        sync=sync,
        device=device,
        say=say,
    )
    say(f"{out}: {clips} clips; flowley train {out} -o CHECKPOINT --preset {preset} --steps N --batch-size B")


@app.command()
def train(
    features: Annotated[
        Path, typer.Argument(parser=user_path, metavar="FEATURES", help="a folder that `flowley extract` wrote")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", parser=user_path, metavar="DIR", help="a folder for the checkpoint")
    ],
    steps: Annotated[int, typer.Option(help="optimiser steps")],
    batch_size: Annotated[int, typer.Option(help="clips per step")],
    preset: Preset = "flowley_169m",
    validation: Annotated[
        Path | None, typer.Option(parser=user_path, metavar="DIR", help="features of clips to measure the loss on")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint in DIR")] = False,
    overrides: Overrides = [],  # noqa: B006
    device: Device = "cpu",
) -> None:
    """Train on a folder of feature files, in one process."""
    from pipelines.commands import train as command
    from pipelines.commands.feature_folder import require_spec

    changes = {"steps": steps, "batch_size": batch_size, **parse_assignments(overrides)}
    recipe = command.make_recipe(preset, {"duration_s": require_spec(features).duration_s, **changes})
    require_device(device)
    command.train(features, out, recipe, validation=validation, resume=resume, device=device, say=say)


@app.command()
def average(
    checkpoint: Annotated[
        Path, typer.Argument(parser=user_path, metavar="CHECKPOINT", help="what training wrote, `ema/` in or beside it")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", parser=user_path, metavar="DIR", help="a folder for the network")],
    sigma_rel: Annotated[float, typer.Option(help="width of the average, relative to the training time")],
) -> None:
    """Average a training's past weights over another width, without training again."""
    from flowley.training.ema import synthesise

    quiet_libraries()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"-o {out}: holds something else; give a new folder")
    with user_input():
        synthesise(checkpoint, sigma_rel).save_pretrained(out)
    say(f"{out}: the average of width {sigma_rel:g}")


@app.command()
def evaluate(
    generated: Annotated[
        Path, typer.Argument(parser=user_path, metavar="GENERATED", help="a video or sound file, or a folder")
    ],
    original: Annotated[Path, typer.Argument(parser=user_path, metavar="ORIGINAL", help="of the same names")],
    hz: Annotated[int, typer.Option(help="both are compared at this rate")] = 16_000,
    as_json: AsJson = False,
) -> None:
    """Score generated sound against the originals."""
    from pipelines.commands import evaluate as command

    if hz < 8_000:
        raise UserError(f"--hz {hz}: wanted at least 8000")
    scores = command.evaluate(generated, original, hz=hz, say=partial(typer.echo, err=True))
    table = Table("metric", "value", title=f"{scores['n_clips']} clips at {hz} Hz")
    for name, value in scores["set_metrics"].items():
        table.add_row(name, scores["missing"][name] if value is None else f"{value:.4f}")
    show(table, scores, as_json=as_json)


@app.command()
def presets(as_json: AsJson = False) -> None:
    """The networks with a name: parameters and shape."""
    import torch

    from flowley.network.registry import build_network

    found: list[dict[str, Any]] = []
    for name, config in PRESETS.items():
        with torch.device("meta"):  # counted, not allocated
            parameters = build_network(config).n_parameters
        fields = config.to_dict()
        kind = {"name": name, "model_type": config.model_type, "parameters": parameters}
        found.append({**kind, **{key: fields[key] for key in SHAPE}, "config": fields})
    table = Table("preset", "kind", "parameters", *SHAPE)
    for one in found:
        shape = (str(one[key]) for key in SHAPE)
        table.add_row(one["name"], one["model_type"], f"{one['parameters'] / 1e6:.2f} M", *shape)
    show(table, found, as_json=as_json)


@app.command()
def demo(
    checkpoint: CheckpointPath,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets others on the network in")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="of the page")] = 7860,
    visual: Visual = None,
    text: Text = None,
    codec: Codec = None,
    device: Device = "cpu",
) -> None:
    """A page in the browser: drop a video, edit the caption, listen."""
    require_gradio()
    from pipelines.commands import browser_page

    browser_page.serve(_open(checkpoint, visual, text, codec, device), host, port, say)


def _open(checkpoint: str, visual: str | None, text: str | None, codec: str | None, device: str) -> Generator:
    """Generator of a checkpoint; options override its recorded encoders and codec."""
    from pipelines.commands.generate import open_generator

    require_device(device)
    quiet_libraries()
    chosen = partial(chosen_features, visual=visual, text=text, codec=codec, whose=checkpoint)
    return open_generator(checkpoint, chosen, device=device)


def main() -> None:
    """Entry point."""
    run_command("flowley", app, interrupted="what is written stays, and train goes on with --resume")


if __name__ == "__main__":
    main()
