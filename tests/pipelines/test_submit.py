"""Submitting a run: what the job is given, and a real job on a real Ray head."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from miniature.world.corpus import generate_corpus
from miniature.world.film import World
from pipelines.config_file import load_config
from pipelines.engine.lease import LEASE, Holder
from pipelines.engine.storage import Storage
from pipelines.errors import RunError, UserError
from pipelines.run_config import Config
from pipelines.submit import CONFIG_NAME, S3_VARIABLES, _environment, _holder, stage_job, submit

PROJECT = Path(__file__).resolve().parents[2]
PROMPTS = PROJECT / "prompts"
TOKEN = "0123456789abcdef" * 4


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with prompts and the demo's layout, all paths relative to it."""
    shutil.copytree(PROMPTS, tmp_path / "prompts")
    for model in _models(_demo_config().model_dump(mode="json")):
        (tmp_path / model).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _demo_config(*overrides: str) -> Config:
    return load_config(PROJECT / "configs" / "demo.yaml", overrides)


def _models(value: Any) -> Iterator[str]:
    """Where the configuration's checkpoints lie."""
    if isinstance(value, dict):
        if value.keys() == {"path", "revision"}:
            yield value["path"]
        for item in value.values():
            yield from _models(item)


def _all_text(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _all_text(item)
    elif isinstance(value, str):
        yield value


def test_staged_configuration_points_where_this_process_does(workplace: Path) -> None:
    staging = workplace / "staging"
    changes = (
        "captioner.model={path: owner/name, revision: abababababababababababababababababababab}",
        "features.sync=.demo/sync",
    )
    staged = stage_job(_demo_config(*changes), staging)

    assert load_config(staging / CONFIG_NAME) == staged, "what the job reads is not what was returned"
    assert staged.root == str(workplace / ".demo/store")
    assert staged.source.folder == str(workplace / ".demo/corpus/videos")
    assert staged.source.table == str(workplace / ".demo/corpus/vggsound.csv")
    assert staged.features.sync == str(workplace / ".demo/sync")
    assert staged.captions.model.path == str(workplace / _demo_config().captions.model.path)
    assert staged.captioner.model.path == "owner/name", "a hub id is not a path"
    assert all(Path(model).is_absolute() or model == "owner/name" for model in _models(staged.model_dump(mode="json")))
    assert not any(text.startswith(".") for text in _all_text(staged.model_dump(mode="json"))), (
        "a relative path means another place in the job's working directory"
    )


def test_the_holder_of_the_root_is_seen_and_a_root_out_of_reach_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = Holder(host="elsewhere")
    storage = Storage(str(tmp_path))
    assert _holder(storage) is None
    storage.write_json(LEASE, vars(holder))
    assert _holder(storage) == holder
    monkeypatch.setattr(Storage, "read_bytes", _denied)
    assert _holder(storage) is None


def _denied(storage: Storage, name: str) -> bytes:
    raise PermissionError(13, "Permission denied")


def test_bucket_addresses_stay(workplace: Path) -> None:
    staged = stage_job(_demo_config("root=s3://bucket/run", "source.folder=s3://bucket/raw"), workplace / "staging")
    assert (staged.root, staged.source.folder) == ("s3://bucket/run", "s3://bucket/raw")


def test_prompts_keep_their_names_and_code_is_whole(workplace: Path) -> None:
    staging = workplace / "staging"
    staged = stage_job(_demo_config(), staging)
    assert staged.captions.warnings == "prompts/warnings.yaml", "a plan would word its reasons otherwise"
    for name in ("av_caption.yaml", "warnings.yaml", "silent_caption.yaml"):
        assert (staging / "prompts" / name).read_bytes() == (PROMPTS / name).read_bytes()
    modules = {p.relative_to(staging).as_posix() for p in staging.rglob("*.py")}
    assert {"pipelines/cli/soundcap.py", "soundcap/prompts.py", "flowley/__init__.py"} <= modules
    assert not list(staging.rglob("__pycache__"))


def test_prompt_from_elsewhere_comes_along(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "mine.yaml"
    outside.write_text("text: Describe what is heard.\n")
    staging = workplace / "staging"
    staged = stage_job(_demo_config(f"captions.instruction={outside}"), staging)
    assert (staging / staged.captions.instruction).read_bytes() == outside.read_bytes()


def test_absent_prompt_is_the_users_to_mend(workplace: Path) -> None:
    with pytest.raises(UserError, match=r"captions\.instruction.*prompts/none\.yaml"):
        stage_job(_demo_config("captions.instruction=prompts/none.yaml"), workplace / "staging")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:8265", "wanted the address of the cluster's dashboard"),
        ("ray://127.0.0.1:10001", "wanted the address of the cluster's dashboard"),
        ("http://127.0.0.1:{free}", "no answer"),
    ],
)
def test_wrong_address_is_one_line_with_remedy(workplace: Path, address: str, message: str) -> None:
    url = address.format(free=_free_ports(1)[0])
    with pytest.raises(UserError, match=message) as raised:
        submit(_demo_config(), address=url, wait=False, say=print)
    assert "\n" not in str(raised.value)


def test_server_that_never_answers_is_given_up(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.submit.CONNECT_TIMEOUT_S", 0.5)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with pytest.raises(UserError, match="no answer"):
            submit(_demo_config(), address=f"http://127.0.0.1:{mute.getsockname()[1]}", wait=False, say=print)


# --- a real cluster -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray_head() -> Iterator[str]:
    """The dashboard's address of a Ray head of our own, on loopback, beside whatever else runs here."""
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    names += ("ray-client-server-port", "runtime-env-agent-port", "metrics-export-port")
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    # Not under pytest's folder: the sockets in it may have names of 107 characters at most.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--include-dashboard=true"]
    command += [f"--temp-dir={folder}", "--object-store-memory=100000000", "--disable-usage-stats"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    # The cluster's `python` is the environment that has the project's packages, as ray_cluster.yaml arranges.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"PATH": path, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    log = Path(folder) / "start.log"
    with log.open("w") as out:
        head = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{ports['dashboard-port']}"
        _wait_for(url, head, log)
        yield url
    finally:
        _end(head)
        shutil.rmtree(folder, ignore_errors=True)


def _client(url: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(url, headers={"Authorization": f"Bearer {TOKEN}"})


def _wait_for(url: str, head: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(600):
        if head.poll() is not None:
            break
        try:
            _client(url).list_jobs()
            return
        except (OSError, RuntimeError):
            time.sleep(0.2)
    raise RuntimeError(f"Ray's head did not start: {log.read_text()}")


def _end(head: "subprocess.Popen[bytes]") -> None:
    """Ends this Ray only: its own process ends its children; what is left of its group is killed."""
    head.terminate()
    with suppress(subprocess.TimeoutExpired):
        head.wait(30)
    with suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)
    head.wait()


@pytest.fixture
def has_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)


@pytest.mark.slow
def test_missing_or_wrong_token_is_told(ray_head: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(workplace / "no-token"))
    with pytest.raises(UserError, match="wants its token and got none"):
        submit(_demo_config(), address=ray_head, wait=False, say=print)
    (workplace / "no-token").write_text("f" * 64)
    with pytest.raises(UserError, match="wants its token and got another"):
        submit(_demo_config(), address=ray_head, wait=False, say=print)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    generate_corpus(folder, clips=3, seed=5, workers=1, world=World(duration_s=3.0))
    return folder


def _clips_only(corpus: Path, root: Path | str, *overrides: str) -> Config:
    return _demo_config(
        f"root={root}",
        f"source={{folder: {corpus}/videos, split: test}}",
        "clips.duration_s=2.0",
        "clips.execution={workers: 1, batch_rows: 3}",
        *overrides,
    )


def _made_in(root: Path) -> dict[str, tuple[int, int]]:
    """Every file of a stage's output or ledger, with what would change if it were written again."""
    files = [f for f in root.rglob("*") if f.is_file() and "clips" in f.relative_to(root).as_posix()]
    return {f.relative_to(root).as_posix(): (f.stat().st_size, f.stat().st_mtime_ns) for f in files}


@pytest.mark.slow
@pytest.mark.usefixtures("has_token")
def test_job_makes_the_same_outputs_and_none_twice(
    ray_head: str, corpus: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray's own client would follow this variable rather than the address that the user gave.
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    root = workplace / "store"
    config = _clips_only(corpus, root)

    first: list[str] = []
    job = submit(config, address=ray_head, wait=True, say=first.append, until="clips")
    manifests = [json.loads(file.read_text()) for file in root.glob("clips/*/manifest.json")]
    assert [manifest["rows_out"] for manifest in manifests] == [3], "\n".join(first)
    made = {name: version for name, version in _made_in(root).items() if "latest" not in name}
    assert made

    second: list[str] = []
    again = submit(config, address=ray_head, wait=True, say=second.append, until="clips")
    assert any("Nothing to do" in line for line in second), "\n".join(second)
    assert made.items() <= _made_in(root).items(), "the second job wrote outputs again"
    assert job.rpartition("-")[0] == again.rpartition("-")[0], "the same run has another name"
    assert job != again, "a finished job's id cannot be used again"


@pytest.mark.slow
@pytest.mark.usefixtures("has_token")
def test_second_submit_attaches_and_another_run_on_the_store_is_refused(
    ray_head: str, corpus: Path, workplace: Path
) -> None:
    # A source with nothing at its end keeps the job at work until it is stopped.
    pipe = workplace / "raw" / "endless.mp4"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    config = _clips_only(corpus, workplace / "store", f"source.table={pipe}")
    client = _client(ray_head)
    job = submit(config, address=ray_head, wait=False, say=print, until="clips")
    try:
        assert submit(config, address=ray_head, wait=False, say=print, until="clips") == job
        with pytest.raises(UserError, match=f"{job} is at work on the same root"):
            submit(config, address=ray_head, wait=False, say=print)
        stopper = threading.Timer(3, client.stop_job, [job])
        stopper.start()
        with pytest.raises(RunError, match="STOPPED"):
            submit(config, address=ray_head, wait=True, say=print, until="clips")
        stopper.join()
    finally:
        client.stop_job(job)


@pytest.mark.slow
@pytest.mark.usefixtures("has_token")
def test_failed_job_is_an_error_and_its_log_is_shown(ray_head: str, workplace: Path) -> None:
    (workplace / "empty" / "videos").mkdir(parents=True)
    config = _clips_only(workplace / "empty", workplace / "store")
    lines: list[str] = []
    with pytest.raises(RunError, match="FAILED"):
        submit(config, address=ray_head, wait=True, say=lines.append, until="clips")
    assert any(line.startswith("soundcap: source.folder: no files") for line in lines), "\n".join(lines)


@pytest.mark.slow
@pytest.mark.usefixtures("has_token")
def test_no_secret_leaves_and_a_bucket_is_named(
    ray_head: str, corpus: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in S3_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    planted = "planted-secret-0451"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, planted)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_PROFILE", "of-this-machine")
    client = _client(ray_head)
    given = {}
    for name, root in {"local": str(workplace / "store"), "bucket": "s3://bucket/run"}.items():
        config = _clips_only(corpus, root)
        job = submit(config, address=ray_head, wait=False, say=print, until="clips", credentials="/etc/soundcap/aws")
        given[name] = client.get_job_info(job).runtime_env.get("env_vars", {})
        client.stop_job(job)
    assert not {key for key in given["local"] if key.startswith("AWS_")}, "no bucket, no credentials"
    sent = {key: value for key, value in given["bucket"].items() if key.startswith("AWS_")}
    assert sent == {"AWS_SHARED_CREDENTIALS_FILE": "/etc/soundcap/aws", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    logs = Path(tempfile.gettempdir()) / "ray" / "session_latest"
    found = subprocess.run(["grep", "-rl", planted, str(logs)], capture_output=True, text=True, check=False)
    assert not found.stdout, "the planted secret was written down"


def test_synchronisation_features_in_a_bucket_need_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in S3_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert not _environment(_demo_config(), "credentials")
    given = _environment(_demo_config("features.sync=s3://bucket/sync"), "credentials")
    assert given == {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_SHARED_CREDENTIALS_FILE": "credentials"}


def test_no_secret_is_in_what_a_job_gets(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = "planted-secret-0451"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, planted)
    config = _demo_config("root=s3://bucket/run")
    assert planted not in json.dumps(_environment(config, None))
    stage_job(config, workplace / "job")
    assert not [file for file in (workplace / "job").rglob("*") if file.is_file() and planted in file.read_text()]
