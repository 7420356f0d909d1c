"""Stage runner: reuses committed outputs and computes missing ones, in order."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

from pipelines.engine.plan import Resolved, resolve
from pipelines.engine.stage import Stage
from pipelines.engine.store import Manifest, Output, mark_latest, open_store
from pipelines.errors import RunError, UserError
from pipelines.progress import human_time
from pipelines.run_config import Config


def run_stages(
    stages: list[Stage], config: Config, *, retry_failed: bool = False, say: Callable[[str], None] = print
) -> list[Manifest]:
    """Runs the stages in order; returns their manifests, new or existing.

    The same call resumes after a crash.

    Raises:
        RunError: a stage cannot finish.
        UserError: the root is not a store of this format, or a file that a stage needs is missing.
    """
    storage = open_store(config.root, write=True)
    done: dict[str, Output] = {}
    manifests: list[Manifest] = []
    for stage in stages:
        stage.prepare(config, storage, say)
        resolved = resolve(stage, config, storage, done, say=say, retry_failed=retry_failed)
        assert not isinstance(resolved, str), f"{stage.name} stands before its input {resolved}"
        manifest = resolved.manifest if resolved.is_done else None
        manifests.append(manifest or _run_one(stage, resolved, say))
        mark_latest(storage, stage.name, resolved.context.output.fingerprint)
        done[stage.name] = resolved.context.output
    return manifests


def _run_one(stage: Stage, resolved: Resolved, say: Callable[[str], None]) -> Manifest:
    started = time.monotonic()
    work, output = stage.work(resolved.context), resolved.context.output
    counts = work.counts
    say(f"{stage.name}: {counts.to_run} of {counts.total} rows to run")
    if counts.total == 0:
        raise RunError(
            f"{stage.name}: got no rows to work on, wanted at least one. "
            "`soundcap status` shows what the stages before it dropped or quarantined, and why."
        )
    result = work.make()
    quarantined = [{**vars(row), "stage": stage.name} for row in result.quarantined]
    output.write_quarantine(quarantined)
    seconds = time.monotonic() - started
    manifest = Manifest(
        stage=stage.name,
        fingerprint=output.fingerprint,
        digest=result.digest,
        rows_in=result.rows_in,
        rows_out=result.rows_in - len(quarantined),
        rows_quarantined=len(quarantined),
        rows_computed=result.computed,
        seconds=round(seconds, 3),
        figures=dict(result.figures),
    )
    out = f"{manifest.rows_out} rows out"
    if quarantined:
        out += f", {len(quarantined)} quarantined"
    say(f"{stage.name}: done, {out}, {human_time(seconds)}")
    return output.commit(manifest, resolved.spec)


def ensure_ray() -> None:
    """Connects to the cluster named by RAY_ADDRESS, else starts one on this machine; once per process."""
    # Workers use this very environment; resolving it again on each of them saturates a cluster.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # Ray assigns the GPUs; workers that reserve none must still see devices they share.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray would run workers at nice 15: beside one ordinary process they would hardly get a core.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Every failure is handled here; Ray would also print those of batches that a failed run abandons.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    import ray  # takes over a second, which `plan` saves

    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "local")
        _check_answers(address)
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def _check_answers(address: str) -> None:
    """Raises UserError within seconds if no cluster answers; Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()) or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"RAY_ADDRESS: no answer from {address} ({error}); start the cluster, or unset it to run on this machine"
        ) from error
