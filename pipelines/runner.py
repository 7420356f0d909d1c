"""Runs the stages in order: what is done stands, what is missing is made, whatever happened before."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

from pipelines.config import Config
from pipelines.errors import RunError, UserError
from pipelines.plan import Resolved, is_done, resolve
from pipelines.progress import human_time
from pipelines.stage import Stage
from pipelines.storage import Storage
from pipelines.store import Manifest, Output, mark_latest


def run_stages(
    stages: list[Stage],
    config: Config,
    *,
    until: str | None = None,
    retry_failed: bool = False,
    say: Callable[[str], None] = print,
) -> list[Manifest]:
    """Runs every stage up to and including `until`. Returns the manifests, made now or found.

    The same call after a crash goes on where it stopped. Raises RunError where a stage cannot finish.
    """
    storage = Storage(config.root)
    done: dict[str, Output] = {}
    manifests: list[Manifest] = []
    for stage in stages:
        stage.prepare(config, storage, say)
        resolved = resolve(stage, config, storage, done, say=say, retry_failed=retry_failed)
        assert not isinstance(resolved, str), f"{stage.name} stands before its input {resolved}"
        manifests.append(_run_one(stage, resolved, retry_failed, say))
        mark_latest(storage, stage.name, resolved.context.output.fingerprint)
        done[stage.name] = resolved.context.output
        if stage.name == until:
            break
    return manifests


def _run_one(stage: Stage, resolved: Resolved, retry_failed: bool, say: Callable[[str], None]) -> Manifest:
    if resolved.manifest is not None and is_done(resolved, retry_failed):
        return resolved.manifest
    counts = stage.counts(resolved.context)
    say(f"{stage.name}: {counts.to_run} of {counts.total} rows to run")
    if counts.total == 0:
        raise RunError(
            f"{stage.name}: got no rows to work on, wanted at least one. "
            "`soundcap status` shows what the stages before it dropped or quarantined, and why."
        )
    started = time.monotonic()
    manifest = resolved.context.output.commit(stage.run(resolved.context), resolved.spec_record)
    out = f"{manifest.rows_out} rows out"
    if manifest.rows_quarantined:
        out += f", {manifest.rows_quarantined} quarantined"
    say(f"{stage.name}: done, {out}, {human_time(time.monotonic() - started)}")
    return manifest


def ensure_ray() -> None:
    """Connects to the cluster named by RAY_ADDRESS, else starts one on this machine; once per process."""
    # Workers use this very environment; resolving it again on each of them saturates a cluster.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # Each GPU is given out by Ray; CPU workers must not lose sight of devices they share.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Every failure is looked at here; Ray would also print those of batches that a failed run abandons.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    import ray

    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "local")
        _check_answers(address)
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )


def _check_answers(address: str) -> None:
    """Ray itself gives a cluster that is not there minutes. Raises UserError within seconds."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()) or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"RAY_ADDRESS: no answer from {address} ({error}); start the cluster, or unset it to run on this machine"
        ) from error
