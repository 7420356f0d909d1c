"""A page in the browser: drop a video, say what should be heard, listen. Needs the optional extra `demo` (Gradio)."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import RunError, UserError, one_line
from pipelines.standalone.generate import GenerateOptions, generate

if TYPE_CHECKING:
    from flowley.generator import Generator

TITLE = "Flowley: sound for silent video"
MAX_FILE_SIZE = "1gb"
PLAYER_PX = 280
MOST_STEPS, MOST_GUIDANCE = 100, 15


def require_gradio() -> None:
    """Raises UserError where Gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError("flowley demo needs Gradio, which is not installed; run: pip install 'soundcap-flowley[demo]'")


def serve(generator: Generator, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serves the page until interrupted. Raises UserError where the port is taken."""
    with tempfile.TemporaryDirectory(prefix="flowley-demo-") as folder:
        page = build_page(generator, Path(folder))
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
    """The page as Gradio blocks; the last film made lies in `folder`."""
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
        options = GenerateOptions(
            caption=caption.strip(), negative=negative.strip() or None, steps=int(steps), guidance=float(guidance),
            solver=solver, seed=int(seed), duration_s=None, whole=whole, batch=1,
        )  # fmt: skip
        shutil.rmtree(folder / "made", ignore_errors=True)
        said: list[str] = []
        try:
            [film] = generate(generator, [Path(video)], folder / "made", options, said.append)
        except UserError as error:
            raise wrong(one_line(error)) from error
        except RunError as error:  # what was wrong with the one video was said before
            raise wrong((said or [one_line(error)])[-1].replace(f"{Path(video).parent}/", "")) from error
        return str(film)

    trained_s = generator.features.duration_s
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# {TITLE}")
        with gr.Row():
            with gr.Column():
                video = gr.Video(label="Silent video", sources=["upload"], height=PLAYER_PX)
                caption = gr.Textbox(label="What should be heard", placeholder="a dog barks while rain falls")
                negative = gr.Textbox(label="What should not be heard", placeholder="music, speech")
                with gr.Row():
                    steps = gr.Slider(1, MOST_STEPS, value=25, step=1, label="Steps")
                    guidance = gr.Slider(0, MOST_GUIDANCE, value=7.5, step=0.5, label="Guidance")
                with gr.Row():
                    solver = gr.Radio(["euler", "midpoint"], value="euler", label="Solver")
                    seed = gr.Number(value=0, precision=0, minimum=0, label="Seed")
                whole = gr.Checkbox(label=f"All of the video, not its first {trained_s:g} s")
                button = gr.Button("Make its sound", variant="primary")
            with gr.Column():
                film = gr.Video(label="With sound", interactive=False, autoplay=True, height=PLAYER_PX)
        asked = [video, caption, negative, steps, guidance, solver, seed, whole]
        button.click(make, asked, film, api_name="generate", concurrency_limit=1)
    return page
