"""Gradio demo page: drop a video, describe its sound, listen. Needs the optional extra `demo`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowley.sampling.generator import Generator
from flowley.sampling.solvers import SOLVER_NAMES, SampleSettings
from pipelines.commands.generate import GenerateOptions, generate
from pipelines.errors import RunError, UserError, one_line, user_input
from pipelines.scratch import scratch

TITLE = "Flowley: sound for silent video"
MAX_FILE_SIZE = "1gb"
PLAYER_PX = 280
MAX_STEPS, MAX_GUIDANCE = 100, 15


def serve(generator: Generator, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serves the page until interrupted. Raises UserError if the port is taken."""
    with scratch("demo") as folder:
        page = build_page(generator, folder)
        try:
            _, url, _ = page.launch(
                server_name=host, server_port=port, share=False, ssr_mode=False, prevent_thread_lock=True, quiet=True,
                max_file_size=MAX_FILE_SIZE, footer_links=[],
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"--port {port}: not free on {host} ({one_line(error, 120)}); give another") from error
        say(f"listen at {url} (Ctrl-C ends it)")
        page.block_thread()


def build_page(generator: Generator, folder: Path) -> Any:
    """Demo page as Gradio blocks. `folder` holds the last generated video."""
    import gradio as gr

    def wrong(message: str) -> Exception:
        error: Exception = gr.Error(message, print_exception=False)
        return error

    def make(
        video: str | None, caption: str, negative: str, steps: float, guidance: float, solver: str, seed: float,
        whole: bool,
    ) -> str:  # fmt: skip
        if not video:
            raise wrong("Drop a video first.")
        shutil.rmtree(folder / "made", ignore_errors=True)
        said: list[str] = []
        try:
            with user_input():
                settings = SampleSettings(steps=int(steps), guidance=float(guidance), solver=solver)  # type: ignore[arg-type]
            options = GenerateOptions(
                settings=settings, caption=caption.strip(), negative=negative.strip() or None, seed=int(seed),
                whole=whole, batch=1,
            )  # fmt: skip
            [film] = generate(lambda: generator, [Path(video)], folder / "made", options, said.append)
        except UserError as error:
            raise wrong(one_line(error)) from error
        except RunError as error:  # `said` already names the video's fault
            raise wrong((said or [one_line(error)])[-1].replace(f"{Path(video).parent}/", "")) from error
        return str(film)

    defaults, trained_s = SampleSettings(), generator.encoders.spec.duration_s
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# {TITLE}")
        with gr.Row():
            with gr.Column():
                video = gr.Video(label="Silent video", sources=["upload"], height=PLAYER_PX)
                caption = gr.Textbox(label="What should be heard", placeholder="a dog barks while rain falls")
                negative = gr.Textbox(label="What should not be heard", placeholder="music, speech")
                with gr.Row():
                    steps = gr.Slider(1, MAX_STEPS, value=defaults.steps, step=1, label="Steps")
                    guidance = gr.Slider(0, MAX_GUIDANCE, value=defaults.guidance, step=0.5, label="Guidance")
                with gr.Row():
                    solver = gr.Radio(list(SOLVER_NAMES), value=defaults.solver, label="Solver")
                    seed = gr.Number(value=0, precision=0, minimum=0, label="Seed")
                whole = gr.Checkbox(label=f"All of the video, not its first {trained_s:g} s")
                button = gr.Button("Make its sound", variant="primary")
            with gr.Column():
                film = gr.Video(label="With sound", interactive=False, autoplay=True, height=PLAYER_PX)
        asked = [video, caption, negative, steps, guidance, solver, seed, whole]
        button.click(make, asked, film, api_name="generate", concurrency_limit=1)
    return page
