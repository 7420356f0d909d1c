"""A real S3 server process, one local Ray for the whole session, tiny checkpoints, and curation of random captions."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from tests.hub_server import Hub


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`s3://bucket` on a moto server process on loopback; the environment points every client at it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    log = (tmp_path_factory.mktemp("s3") / "server.log").open("w")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=log, stderr=log)
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        _wait_for(endpoint, server)
        import s3fs

        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
        yield "s3://bucket"
    finally:
        server.kill()
        server.wait()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


@pytest.fixture(scope="session")
def hub_server() -> Iterator[Hub]:
    """Server of a model hub, for all tests; each starts with `forget`."""
    server = Hub()
    yield server
    server.close()


@pytest.fixture(scope="session")
def only_min_words() -> Callable[[int], str]:
    """The override with which curation drops captions of fewer words and no others, be they sentences or not."""
    from soundcap.curate import Rules

    def override(count: int) -> str:
        off = {field.name: None for field in fields(Rules) if "None" in str(field.type)}
        return f"curation.rules={json.dumps(off | {'violations': False, 'min_words': count})}"

    return override


def _wait_for(endpoint: str, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(300):
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode}")
        try:
            urllib.request.urlopen(endpoint, timeout=1).read()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"no answer from the server at {endpoint}")


@pytest.fixture(scope="session")
def local_ray(s3_url: str) -> Iterator[None]:
    """Ray with four logical CPUs, whatever the machine has, so that tests of fan-out do fan out.

    It starts after the S3 server, so that its processes know where that is.
    """
    import ray

    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_omni(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Qwen2.5-Omni checkpoint with random weights. Not to be written to."""
    from miniature.models.tiny import build_tiny_omni

    folder = tmp_path_factory.mktemp("checkpoints") / "omni"
    build_tiny_omni(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def tiny_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Qwen2.5-VL checkpoint with random weights. Not to be written to."""
    from miniature.models.tiny import build_tiny_vl

    folder = tmp_path_factory.mktemp("checkpoints") / "vl"
    build_tiny_vl(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def tiny_clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny CLAP checkpoint with random weights. Not to be written to."""
    from miniature.models.tiny import build_tiny_clap

    folder = tmp_path_factory.mktemp("checkpoints") / "clap"
    build_tiny_clap(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder_builders() -> dict[str, Callable[[Path, int], None]]:
    """Writers of encoder checkpoints with random weights into a folder: `clip` for frames, `t5` for text."""
    from miniature.models.tiny import build_tiny_clip

    return {"clip": build_tiny_clip, "t5": _build_tiny_t5}


def _build_tiny_t5(folder: Path, seed: int) -> None:
    """Writes a T5 encoder checkpoint (64 channels) with a byte-level BPE tokenizer into `folder`."""
    import torch
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level_tokenizer(), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = T5EncoderModel(config)
    model.save_pretrained(folder)


WORDS = (
    "a an the of and with in on at to is are then while from sound sounds loud soft sharp low high short "
    "long rhythmic steady click clicks beep beeps tone tones noise hum buzz whistle engine dog barks barking "
    "rain water wind footsteps door knocks bell rings drum beat beats music plays speech voice rising falling "
    "rises falls bounce bounces ball impact impacts sweep chirp pulse pulses repeated once twice quiet"
)
"""Common words of captions, which the tokenizer of T5 makes one token each."""


def _byte_level_tokenizer() -> object:
    """Any text to tokens and `</s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([WORDS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer
