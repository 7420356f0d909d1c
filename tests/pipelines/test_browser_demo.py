"""The page as people get it: a server process, driven through its HTTP interface."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flowley.network.feature_spec import FeatureSpec
from flowley.network.presets import preset
from flowley.network.registry import build_network
from miniature.world.corpus import generate_corpus
from miniature.world.film import World
from pipelines.cli.options import require_gradio
from pipelines.errors import UserError
from pipelines.media.probe import probe
from pipelines.media.process import Deadline

ROOT = Path(__file__).parents[2]
START_DEADLINE_S = 180.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_builders: dict) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    generate_corpus(folder / "corpus", clips=1, seed=5, workers=1, world=World(duration_s=3.0))
    next((folder / "corpus" / "videos").iterdir()).rename(folder / "film.mp4")
    for name, build in tiny_encoder_builders.items():
        (folder / name).mkdir()
        build(folder / name, 0)
    network = build_network(preset("tiny", D=32, N1=1, N2=2)).eval()
    network.set_null_text(torch.randn(1, 64))
    network.features = FeatureSpec(visual=f"{folder}/clip", text=f"{folder}/t5", codec="log_mel", duration_s=2.0)
    network.save_pretrained(folder / "checkpoint")
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Any]:
    from gradio_client import Client

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-u", "-m", "pipelines.cli.flowley", "demo", "--checkpoint", folder / "checkpoint",
               "--port", str(port)]  # fmt: skip
    log = folder / "server.log"
    with log.open("w") as sink:
        environment = os.environ | {"GRADIO_TEMP_DIR": str(folder / "uploads")}
        server = subprocess.Popen(command, cwd=ROOT, stdout=sink, stderr=sink, env=environment)
    try:
        deadline = time.monotonic() + START_DEADLINE_S
        while f"listen at http://127.0.0.1:{port}/" not in log.read_text():
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield Client(f"http://127.0.0.1:{port}/", verbose=False, download_files=str(folder / "downloads"))
    finally:
        server.terminate()
        server.wait(timeout=30)
    assert "Traceback" not in log.read_text(), log.read_text()


def ask(client: Any, video: Path | None, caption: str = "a bell rings", *, whole: bool = False) -> Path:
    from gradio_client import handle_file

    given = None if video is None else handle_file(str(video))
    return Path(client.predict(given, caption, "music", 2, 3.0, "midpoint", 1, whole, api_name="/generate"))


def seconds_of_sound(film: Path) -> float:
    info = probe(film, Deadline(30))
    assert info.video is not None and info.audio is not None
    return info.audio.duration_s or 0.0


@pytest.mark.slow
def test_a_film_comes_back_with_sound(client: Any, folder: Path) -> None:
    first = ask(client, folder / "film.mp4")
    assert seconds_of_sound(first) == pytest.approx(2.0, abs=0.05)
    assert seconds_of_sound(ask(client, folder / "film.mp4", "", whole=True)) == pytest.approx(3.0, abs=0.1)


@pytest.mark.slow
def test_errors_say_what_is_wrong_and_no_more(client: Any, folder: Path) -> None:
    """In the browser as one line, without folders of the server, and without a traceback in its log."""
    broken = folder / "broken.mp4"
    broken.write_bytes(b"not a film")
    for video, caption, words in (
        (None, "", "Drop a video first."),
        (folder / "film.mp4", "rain " * 300, "has 301 tokens, this network takes 128: shorten it by 173"),
        (broken, "", "broken.mp4: not readable as media"),
    ):
        with pytest.raises(Exception, match=words) as error:
            ask(client, video, caption)
        assert str(folder) not in str(error.value)


def test_without_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs Gradio, which is not installed; run: pip install"):
        require_gradio()
