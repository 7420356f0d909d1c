"""Submission of a run to a Ray cluster as a job: the same command, the same store, nothing computed twice.

The job's working directory holds the code, the prompts and the resolved configuration; the cluster's nodes
need the project's dependencies only. All state lies in the store, so a job may die with its cluster at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shlex
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

from pipelines.engine.fingerprint import digest, file_sha256, folder_digest
from pipelines.engine.lease import Holder, read_holder
from pipelines.engine.storage import Storage
from pipelines.errors import RunError, UserError, machine_fault, one_line
from pipelines.run_config import CodecConfig, Config, ModelRef, Section
from pipelines.scratch import scratch

CONFIG_NAME = "config.yaml"
PACKAGES = ("pipelines", "soundcap", "flowley")
PATH_KEYS = frozenset({"root", "folder", "table", "adapter", "checkpoint", "sync"})
PROMPT_KEYS = frozenset({"instruction", "warnings"})
S3_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
"""Environment variables passed to a job with a bucket. Secrets are not: whoever sees the dashboard sees a job's."""
CREDENTIALS_FILE = "AWS_SHARED_CREDENTIALS_FILE"
CONNECT_TIMEOUT_S = 5.0
POLL_S = 1.0
ROOT_METADATA = "soundcap_root"


def submit(
    config: Config,
    *,
    address: str,
    wait: bool,
    say: Callable[[str], None],
    until: str | None = None,
    retry_failed: bool = False,
    credentials: str | None = None,
) -> str:
    """Submits the run to the cluster whose dashboard is at `address`; returns the job's submission id.

    If the same run is already under way on that cluster, its job is reused; another run on the same store is
    refused. With `wait`, follows the job's log to its end. `credentials` is the path of a file on the nodes, like
    ~/.aws/credentials; by default they use their own role or that very file. No secret leaves this process.
    Raises UserError (address, prompts, another run under way) and RunError (the job failed or was stopped).
    """
    client = _connect(address)
    with scratch("job") as staging:
        staged = stage_job(config, staging)
        command = _entrypoint(until, retry_failed)
        is_here = urlsplit(address).hostname in ("localhost", "127.0.0.1", "::1")
        if not is_here and Storage(staged.root).is_local:
            say(f"root is the local folder {staged.root}: every node must see it under that name, or use s3://")
        if _uses_bucket(staged) and credentials is None and "AWS_SECRET_ACCESS_KEY" in os.environ:
            say(
                "AWS_SECRET_ACCESS_KEY stays here: the nodes use their own role or ~/.aws/credentials, or --credentials"
            )
        holder = _holder(Storage(staged.root))
        job_id, is_new = _submit_once(client, staged, staging, command, _environment(staged, credentials))
    if is_new:
        say(f"submitted {job_id} to {address}")
        if holder is not None:
            say(f"root {staged.root!r} was held by {holder}; if that run lives, the job ends in seconds and says so")
    else:
        say(f"{job_id}: the same run is already under way on {address}; nothing new was submitted")
    if wait:
        say("following its log; Ctrl-C stops only the following, the job goes on")
        _follow(client, job_id, say)
    else:
        say(f"follow it: ray job logs --follow {job_id} --address {address}")
    return job_id


def _holder(root: Storage) -> Holder | None:
    """Driver that holds the root's lease, where this machine can see it."""
    try:
        return read_holder(root)
    except Exception as error:
        if machine_fault(error) is None:
            raise
        return None


# --- contents of the job --------------------------------------------------------------------------------------


def stage_job(config: Config, folder: Path) -> Config:
    """Fills `folder` with code, prompts and `config.yaml`; returns the configuration that was written.

    Local paths become absolute, so that the job sees the store and the checkpoints that this process sees.
    Prompts are copied and keep their names, so that a plan made there words its reasons as one made here.
    Raises UserError for a prompt file that is absent.
    """
    for package in PACKAGES:
        source = Path(__file__).resolve().parents[1] / package
        shutil.copytree(source, folder / package, ignore=shutil.ignore_patterns("__pycache__", ".*", "checkpoints"))
    staged = _staged_section(config, folder, "")
    assert isinstance(staged, Config)
    text = yaml.safe_dump(staged.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    return staged


def _staged_section(section: Section, folder: Path, where: str) -> Section:
    updates: dict[str, Any] = {}
    for name, value in section:
        key = f"{where}{name}"
        if isinstance(value, ModelRef | CodecConfig):
            if value.path is not None and Path(value.path).is_dir():
                updates[name] = value.model_copy(update={"path": Storage(value.path).url})
        elif isinstance(value, Section):
            updates[name] = _staged_section(value, folder, f"{key}.")
        elif name in PROMPT_KEYS and isinstance(value, str):
            updates[name] = _stage_prompt(value, folder, key)
        elif name in PATH_KEYS and isinstance(value, str):
            updates[name] = Storage(value).url  # absolute, so that the job's ledger keys are this process's
    return section.model_copy(update=updates)


def _stage_prompt(name: str, folder: Path, key: str) -> str:
    """Copies one prompt file; one from outside the working directory gets a name under `prompts/`."""
    source = Path(name)
    if not source.is_file():
        raise UserError(f"{key}: no such prompt file {name!r}; give the path of a YAML file like those in prompts/")
    if source.is_absolute() or ".." in source.parts:
        name = f"prompts/{file_sha256(source)[:8]}-{source.name}"
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return name


def _entrypoint(until: str | None, retry_failed: bool) -> str:
    words = ["-m", "pipelines.cli.soundcap", "run", CONFIG_NAME]
    if until is not None:
        words += ["--until", until]
    if retry_failed:
        words.append("--retry-failed")
    return shlex.join(words)


def _with_interpreter(arguments: str) -> str:
    """Shell command that runs this Python if the head node has it too, else the one on the cluster's PATH.

    A cluster started as `.venv/bin/ray start` has another `python` on its PATH, without our packages.
    """
    own = shlex.quote(sys.executable)
    return f'PYTHON={own}; [ -x "$PYTHON" ] || PYTHON=python; exec "$PYTHON" {arguments}'


def _uses_bucket(config: Config) -> bool:
    addresses = (config.root, config.source.folder, config.source.table, config.features.sync)
    return any(str(url).startswith("s3://") for url in addresses)


def _environment(config: Config, credentials: str | None) -> dict[str, str]:
    """Environment variables of the job: where its bucket is, and which file on the nodes has the credentials."""
    if not _uses_bucket(config):
        return {}
    given = {name: os.environ[name] for name in S3_VARIABLES if name in os.environ}
    return given if credentials is None else given | {CREDENTIALS_FILE: credentials}


# --- the cluster ----------------------------------------------------------------------------------------------


def _connect(address: str) -> Any:
    """Client of the cluster's job server. Raises UserError within seconds if there is none."""
    url = _checked(address)
    remedy = "Start a cluster (ray up ray_cluster.yaml, then ray dashboard ray_cluster.yaml) or correct --address"
    headers: dict[str, str] = {}
    try:
        answer = _ask_version(url, headers)
        if answer == "refused":
            headers = _token_header()
            answer = _ask_version(url, headers)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"--address {address}: no answer ({one_line(error, 120)}). {remedy}") from error
    if answer == "refused":
        raise UserError(
            f"--address {address}: the cluster wants its token and got {'another' if headers else 'none'}. "
            "Put the output of `ray get-auth-token` on its head into ~/.ray/auth_token here, or set RAY_AUTH_TOKEN"
        )
    if answer != "ray":
        raise UserError(f"--address {address}: something answers, but not Ray's dashboard. {remedy}")
    from ray.job_submission import JobSubmissionClient

    try:
        with _no_other_address():
            return JobSubmissionClient(url, headers=headers)
    except (OSError, RuntimeError) as error:
        raise UserError(f"--address {address}: {one_line(error, 300)}. {remedy}") from error


def _ask_version(url: str, headers: dict[str, str]) -> Literal["ray", "refused", "other"]:
    """Kind of server at `url`. Ray's own client would wait for an answer without limit."""
    request = urllib.request.Request(f"{url}/api/version", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S) as response:
            return "ray" if "ray_version" in json.load(response) else "other"
    except urllib.error.HTTPError as error:
        return "refused" if error.code in (401, 403) else "other"
    except ValueError:
        return "other"


def _token_header() -> dict[str, str]:
    """HTTP header with Ray's token, from where Ray keeps it. Ray's client sends it only in token mode."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    if not token:
        file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        token = file.read_text().strip() if file.is_file() else ""
    return {"Authorization": f"Bearer {token}"} if token else {}


def _checked(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"--address {address}: wanted the address of the cluster's dashboard, like http://127.0.0.1:8265"
        )
    return address.rstrip("/")


@contextlib.contextmanager
def _no_other_address() -> Iterator[None]:
    """Hides environment variables that would override the address passed to Ray's client."""
    hidden = {name: os.environ.pop(name, None) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")}
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in hidden.items() if value is not None})


def _submit_once(
    client: Any, config: Config, staging: Path, command: str, environment: Mapping[str, str]
) -> tuple[str, bool]:
    """Job id, and True if the job was submitted now rather than found under way."""
    base = f"soundcap-{digest([folder_digest(staging), command])[:12]}"
    jobs = _jobs(client)
    if same := _same_under_way(jobs, config.root, base):
        return same, False
    attempt = 1 + sum(job.submission_id.rpartition("-")[0] == base for job in jobs)
    try:
        job_id = client.submit_job(
            entrypoint=_with_interpreter(command),
            submission_id=f"{base}-{attempt}",
            runtime_env={"working_dir": str(staging), "env_vars": dict(environment)},
            metadata={ROOT_METADATA: config.root},
        )
    except (OSError, RuntimeError) as error:
        # Another process may have submitted the same run since the jobs were listed.
        if same := _same_under_way(_jobs(client), config.root, base):
            return same, False
        raise RunError(f"the cluster did not take the job: {one_line(error, 600)}") from error
    return str(job_id), True


def _jobs(client: Any) -> list[Any]:
    try:
        return [job for job in client.list_jobs() if job.submission_id]
    except (OSError, RuntimeError) as error:
        raise RunError(f"the cluster's jobs cannot be listed: {one_line(error, 600)}") from error


def _same_under_way(jobs: list[Any], root: str, base: str) -> str | None:
    """Id of this run's unfinished job, if any. Raises UserError for another run on the same store."""
    for job in jobs:
        if (job.metadata or {}).get(ROOT_METADATA) == root and not job.status.is_terminal():
            if job.submission_id.rpartition("-")[0] == base:
                return str(job.submission_id)
            raise UserError(
                f"{job.submission_id} is at work on the same root with another configuration, prompts or code. "
                f"Wait for it, or stop it first: ray job stop {job.submission_id} --address URL"
            )
    return None


def _follow(client: Any, job_id: str, say: Callable[[str], None]) -> None:
    """Passes the job's log to `say` until it ends. Raises RunError unless it succeeded."""
    from aiohttp import ClientError

    try:
        asyncio.run(_tail(client, job_id, say))
    except (OSError, RuntimeError, ClientError) as error:
        say(f"{job_id}: the log broke off ({one_line(error, 200)}); waiting for the job to end")
    try:
        job = client.get_job_info(job_id)
        while not job.status.is_terminal():
            time.sleep(POLL_S)
            job = client.get_job_info(job_id)
    except (OSError, RuntimeError) as error:
        raise RunError(
            f"{job_id}: the cluster is gone or cannot be reached ({one_line(error, 300)}). What was made is in the "
            "store: the same command attaches to the job if it still runs, and goes on from there if not."
        ) from error
    if job.status.value != "SUCCEEDED":
        reason = (job.message or "no reason given").splitlines()[0]
        raise RunError(
            f"{job_id}: {job.status.value}: {reason} Its log is above; "
            "mend the cause, and the same command goes on where it stopped."
        )
    say(f"{job_id}: succeeded")


async def _tail(client: Any, job_id: str, say: Callable[[str], None]) -> None:
    async for text in client.tail_job_logs(job_id):
        for line in text.splitlines():
            say(line)
